"""The last stage of a backbone as a part of a detector's head, which runs it on RoIs instead of whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.precision import full_precision


@dataclass(frozen=True, eq=False)
class RoIStage:
    """Layers of a backbone that a head runs on pooled RoIs.

    They stay the backbone's, in whose state they have timm's names and which freezes them and sets their mode. This is
    no module, so that a head that holds it does not register them a second time.

    Args:
        layers: what is run, one after the other.
        in_channels: of what they take.
        channels: of what they make.
        stride: by how much that is coarser.
        multiple: of what the sides of a map must be; another gets zeros at the right and at the bottom.
    """

    layers: tuple[nn.Module, ...]
    in_channels: int
    channels: int
    stride: int
    multiple: int = 1

    def __call__(self, pooled: Tensor) -> Tensor:
        """Turn ``(K, in_channels, H, W)`` into ``(K, channels, ceil(H / stride), ceil(W / stride))``."""
        height, width = pooled.shape[-2:]
        padding = (-width % self.multiple, -height % self.multiple)
        if any(padding):
            pooled = F.pad(pooled, (0, padding[0], 0, padding[1]))
        # As in Backbone.forward: where a map is narrower than the stride, oneDNN may read what nobody wrote.
        narrow = pooled.device.type == "cpu" and pooled.shape[-1] < self.stride
        with full_precision(pooled) if narrow else nullcontext():
            for layer in self.layers:
                pooled = layer(pooled)
        return pooled


def find_stage(model: nn.Module, levels: Callable[[Tensor], list[Tensor]], size: int, stride: int) -> RoIStage | None:
    """Find the layers that take one level of a model to the next.

    Args:
        model: in evaluation mode.
        levels: computes the two levels of ``(1, 3, size, size)`` images.
        size: of images that the model takes, in pixels.
        stride: by how much the second level is coarser.

    Returns:
        The stage, whose layers are modules of the model; None where there are none that, run on the first level alone,
        give the second.
    """
    image = torch.arange(3 * size * size, device=next(model.parameters()).device).view(1, 3, size, size).sin()
    with torch.no_grad(), _recorded(model) as calls:
        start, end = levels(image)
        layers: list[nn.Module] = []
        reached = start
        while reached is not end:
            # Of modules that were given the same, the outermost is done last.
            later = [(layer, made) for layer, taken, made in calls if taken is reached and made is not reached]
            if not later:
                return None
            layers.append(later[-1][0])
            reached = later[-1][1]
    stage = RoIStage(tuple(layers), start.shape[1], end.shape[1], stride)
    with torch.no_grad():
        again = stage(start)
        # Between modules there may be more: an activation in place, a function.
        if again.shape != end.shape or not (end.is_meta or torch.allclose(again, end, 1e-3, 1e-5)):
            return None
        try:
            whole = stage(start[..., 1:, 1:]).shape == end.shape
        except NotImplementedError:  # not of the model's: the meta device cannot do what it asks for
            raise
        except RuntimeError:
            whole = False
    return stage if whole else replace(stage, multiple=stride)


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Record which modules were called with one tensor and gave one, in the order in which they were done."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, given: tuple[Any, ...], settings: dict[str, Any], made: Any) -> None:
        if len(given) == 1 and not settings and isinstance(made, Tensor):
            calls.append((module, given[0], made))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_roi_stage(head: Callable[..., Any], name: str, roi_stage: bool) -> None:
    """Refuse a backbone's setting ``roi_stage`` that does not fit the head.

    Args:
        head: the class or function of the head.
        name: what the head is called in settings.
        roi_stage: the setting.

    Raises:
        ValueError: the head runs the stage and there is none, or the other way round.
    """
    needed = getattr(head, "needs_stage", False)
    if needed and not roi_stage:
        raise ValueError(f"roi_stage: expected true for the head {name}, which runs the backbone's last stage on RoIs")
    if roi_stage and not needed:
        raise ValueError(f"roi_stage: would have no effect, the head {name} does not run the backbone's last stage")

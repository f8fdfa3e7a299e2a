"""Tiny arguments of every operator: for the overhead of a call, and to see each one work on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionlab import ops


@dataclass(frozen=True)
class Sample:
    """One call: ``getattr(ops, op)(*arguments)``, and which of its tensors have a gradient."""

    op: str
    arguments: tuple
    leaves: tuple[Tensor, ...] = ()
    fixed_size: bool = True  # whether the shape of the answer is known before its values

    def call(self, module: Any = ops) -> Any:
        return getattr(module, self.op)(*self.arguments)

    def gradients(self, answer: Tensor) -> tuple[Tensor, ...]:
        """The gradient of every leaf for an incoming gradient that differs from place to place."""
        incoming = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype, device=answer.device)
        return torch.autograd.grad(answer, self.leaves, incoming.reshape(answer.shape))


def samples(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    grad: bool = True,
    side: int = 8,
    layout: str = "contiguous",
) -> list[Sample]:
    """Return one call of each operator.

    Args:
        device: where its tensors lie.
        dtype: of all floating point tensors.
        grad: whether the leaves require a gradient.
        side: height and width of the maps, in pixels.
        layout: ``"contiguous"`` or ``"channels_last"``, of the four-dimensional tensors.
    """
    random = torch.Generator().manual_seed(0)

    def place(values: Tensor, leaf: bool = True) -> Tensor:
        values = values.to(device, dtype)
        if layout == "channels_last" and values.dim() == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(grad and leaf)

    def normal(*shape: int) -> Tensor:
        return place(torch.randn(shape, generator=random))

    corners = (torch.rand(6, 2, 2, generator=random) * side).sort(dim=1).values.reshape(6, 4)
    plain = place(corners, leaf=False)
    index = (torch.arange(6.0) % 2)[:, None]
    rois = place(torch.cat([index, corners], 1), leaf=False)
    scores = place(torch.rand(6, generator=random), leaf=False)
    groups = torch.tensor([0, 1, 0, 1, 2, 0], device=device)
    input, wide = normal(2, 4, side, side), normal(2, 8, side, side)
    offset, mask, weight, bias = normal(2, 18, side, side), normal(2, 9, side, side), normal(4, 4, 3, 3), normal(4)
    shift, part = normal(6, 2, 2, 2), normal(6, 1, 2, 2)
    levels, per_image = [input, normal(2, 4, side // 2, side // 2)], [plain[::2], plain[1::2]]
    return [
        Sample("nms", (plain, scores, 0.5), fixed_size=False),
        Sample("batched_nms", (plain, scores, groups, 0.5), fixed_size=False),
        Sample("nms_padded", (plain, scores, 0.5, 4)),
        Sample("soft_nms", (plain, scores), fixed_size=False),
        Sample("box_iou", (plain, plain)),
        Sample("roi_align", (input, rois, 2, 1.0, 2, True), (input,)),
        Sample("roi_pool", (input, rois, 2, 1.0), (input,)),
        Sample("ps_roi_align", (wide, rois, 2, 1.0, 2), (wide,)),
        Sample("ps_roi_pool", (wide, rois, 2, 1.0), (wide,)),
        Sample("multi_scale_roi_align", (levels, per_image, 2, [1.0, 0.5]), tuple(levels)),
        Sample("deform_roi_pool", (input, rois, shift, 2, 1.0, 2, 0.1, part), (input, shift, part)),
        Sample("deform_ps_roi_pool", (wide, rois, shift, 2, 1.0, 2, 2, 2, 0.1, part), (wide, shift, part)),
        Sample("deform_conv2d", (input, offset, weight, bias, 1, 1, 1, mask), (input, offset, mask, weight, bias)),
    ]


def counterpart(name: str, module: Any) -> Callable[..., Any] | None:
    """Return torchvision's operator of that name, or None where it has none."""
    return getattr(module, name, None) if module is not None else None

"""Networks as graphs whose batch, height and width are free within a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from visionlab.checks import check_at_least
from visionlab.data.transforms import EvaluationResize
from visionlab.models.backbone import Backbone
from visionlab.models.static_detector import StaticDetections, StaticDetector
from visionlab.models.two_stage_detector import TwoStageDetector

SCORE_THRESHOLD = "static.score_threshold"  # the buffer in a ``DetectorGraph``


@dataclass(frozen=True)
class Limits:
    """What a graph takes.

    Args:
        batch: the most images at once.
        height: least and greatest height of a batch in pixels.
        width: least and greatest width.
        multiple: divides height and width.
    """

    batch: int
    height: tuple[int, int]
    width: tuple[int, int]
    multiple: int = 1

    def sides(self) -> list[tuple[int, int]]:
        """Return two ``(height, width)`` to trace and to check with, one upright and one across."""
        return [
            (self._near(3 * 64 + 8, self.height), self._near(4 * 64 + 8, self.width)),
            (self._near(5 * 32 + 1, self.height), self._near(3 * 32 + 1, self.width)),
        ]

    def _near(self, side: int, limits: tuple[int, int]) -> int:
        return min(max(-(-side // self.multiple) * self.multiple, limits[0]), limits[1])


class Graph(Protocol):
    """What can be exported: ``(pixels, sizes)`` in, tensors with names out."""

    limits: Limits
    outputs: list[str]

    def __call__(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, in the order of their names."""


class DetectorGraph(nn.Module):
    """A detector to export.

    Args:
        detector: any.
        max_side: the most pixels of height and of width.
        max_batch: the most images at once.
    """

    def __init__(self, detector: TwoStageDetector, *, max_side: int, max_batch: int) -> None:
        super().__init__()
        self.static = StaticDetector(detector)
        self.outputs = list(StaticDetections._fields)
        self.limits = _limits(detector.backbone, 1, max_side, max_batch)

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return what ``StaticDetector.forward`` does, as a plain tuple, which ``torch.export.save`` can write."""
        return tuple(self.static(pixels, sizes))


class ResizedGraph(nn.Module):
    """A detector to export that takes images as they are.

    Args:
        inner: the detector.
        resize: what brings images to the size that it was trained at.
    """

    def __init__(self, inner: DetectorGraph, resize: EvaluationResize) -> None:
        super().__init__()
        self.inner = inner
        self.short_side, self.max_size = resize.short_side, resize.max_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Find the objects in ``(N, H, W, 3)`` uint8 RGB images of one size; boxes are in their pixels."""
        pixels, sizes, scale = self.resized(images)
        boxes, *others = self.inner(pixels, sizes)
        return boxes * scale.to(boxes.dtype), *others

    def resized(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(N, 3, height, width)`` pixels, ``(N, 2)`` sizes, and factors that take the sides of a box back."""
        # The numbers that ``fit`` computes, as tensors: a graph that holds floats of a shape cannot be saved.
        given = torch.stack([torch.full((), side, dtype=torch.float64) for side in images.shape[1:3]])
        scale = torch.minimum(self.short_side / given.min(), self.max_size / given.max())
        wanted = (given * scale).round().clamp(min=1)
        size = wanted.long()
        sides: list[Any] = [side.item() for side in size.unbind()]
        for side in sides:
            torch._check(side >= 1)
            torch._check(side <= self.max_size)
        pixels = nn.functional.interpolate(
            images.permute(0, 3, 1, 2), sides, mode="bilinear", antialias=True, align_corners=False
        )
        return pixels, size.expand(images.shape[0], 2), (given / wanted).flip(0).repeat(2)


class BackboneGraph(nn.Module):
    """A backbone to export: its levels, called by their strides.

    Args:
        backbone: any, in evaluation mode.
        max_side: the most pixels of height and of width.
        max_batch: the most images at once.
    """

    def __init__(self, backbone: Backbone, *, max_side: int, max_batch: int) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.outputs = [f"stride_{stride}" for stride in backbone.strides]
        # Images narrower than the last stride take another path.
        self.limits = _limits(backbone, backbone.strides[-1], max_side, max_batch)

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return one ``(N, C, H, W)`` map per level, finest first; see ``StaticDetector.forward``."""
        return tuple(self.backbone(self.backbone.normalize(pixels, sizes)))


def trace(graph: Any) -> torch.export.ExportedProgram:
    """Return a graph as one program, whose shapes only the batch decides.

    Args:
        graph: a module that is a ``Graph``.
    """
    limits: Limits = graph.limits
    batch = torch.export.Dim("batch", min=1, max=limits.batch)
    free: dict[int, Any] = {0: batch}
    for dimension, name in ((2, "height"), (3, "width")):
        least, most = getattr(limits, name)
        if least < most and limits.multiple == 1:
            free[dimension] = torch.export.Dim(name, min=least, max=most)
        elif least < most:
            steps = torch.export.Dim(f"{name}_steps", min=least // limits.multiple, max=most // limits.multiple)
            free[dimension] = limits.multiple * steps
    return _trace(graph, example(limits, 2, limits.sides()[0]), (free, {0: batch}))


def trace_resized(graph: ResizedGraph) -> torch.export.ExportedProgram:
    """Return a graph of images as they are as one program.

    Raises:
        ValueError: the network has no graph for sizes that are known only when it runs.
    """
    images = torch.zeros(2, 150, 220, 3, dtype=torch.uint8)
    names = {0: "batch", 1: "height", 2: "width"}
    most = {0: graph.inner.limits.batch}
    free = {place: torch.export.Dim(name, min=1, max=most.get(place)) for place, name in names.items()}
    try:
        return _trace(graph, (images,), (free,))
    except Exception as error:  # torch's own classes are not public
        reason = " ".join(str(error).split())
        raise ValueError(f"resize: torch.export has no graph with it for this network: {reason[:300]}") from error


def _trace(
    graph: nn.Module, inputs: tuple[Tensor, ...], free: tuple[dict[int, Any], ...]
) -> torch.export.ExportedProgram:
    # Without it the coarsest level could not have a single place, as sizes of 1 would have a graph of their own.
    shapes: Any = import_module("torch.fx.experimental._config")
    with torch.no_grad(), shapes.patch(backed_size_oblivious=True):
        return torch.export.export(
            graph,
            inputs,
            dynamic_shapes=free,
            strict=False,
            # What a layer asks of a size, such as timm's padding to equal sizes, is then asked when the graph runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def example(limits: Limits, images: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a batch with something to see: soft patches of color, and one image that is padded.

    Args:
        limits: of the graph that it is for.
        images: how many.
        size: height and width of the batch.
    """
    generator = torch.Generator().manual_seed(images + size[0])
    coarse = torch.rand(images, 3, 9, 9, generator=generator)
    smooth = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    pixels = (smooth * 224 + torch.rand(smooth.shape, generator=generator) * 31).to(torch.uint8)
    sizes = torch.tensor([size] * images)
    if limits.height[0] < limits.height[1]:
        sizes[-1] = (sizes[-1] * 7) // 8
    for image, (height, width) in zip(pixels, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return pixels, sizes


def described(limits: Limits) -> dict[str, Sequence[int]]:
    """Return the limits as plain JSON."""
    return {**asdict(limits), "batch": [1, limits.batch]}


def _limits(backbone: Backbone, least: int, most: int, batch: int) -> Limits:
    check_at_least(2, max_batch=batch)
    if backbone.fixed_size is not None:
        height, width = backbone.fixed_size
        return Limits(batch, (height, height), (width, width))
    multiple = backbone.multiple if least > 1 else 1
    check_at_least(2 * max(backbone.strides), max_side=most)
    sides = (max(least, multiple), most // multiple * multiple)
    return Limits(batch, sides, sides, multiple)

"""The benchmark's cases: the shapes of a detector, and for each the bytes that must move and the operations to be done.

BENCHMARKS.md explains the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visionlab import ops

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGE = (800, 608)  # pixels; the maps of stride 4, 8, 16 and 32 are 200x152, 100x76, 50x38 and 25x19


@dataclass(frozen=True)
class Cost:
    """The least cost of one pass: bytes read and written, additions, multiplications and comparisons."""

    bytes: float
    operations: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.operations + other.operations)


@dataclass
class Work:
    """One prepared case: the calls, the tensors with a gradient, the cost of both passes."""

    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None
    leaves: list[Tensor]
    forward: Cost
    backward: Cost | None = None
    conv2d: Callable[[], Tensor] | None = None  # torch's convolution of the same shape
    conv2d_leaves: list[Tensor] = field(default_factory=list)
    gemms: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)  # of each pass: rows, inner, columns


@dataclass(frozen=True)
class Case:
    op: str
    label: str
    make: Callable[[Make], Work]
    layouts: tuple[str, ...] = ("contiguous", "channels_last")
    quick: bool = False


class Make:
    """Tensors of one device, dtype and memory format, from one seed; and torchvision's operators, or none."""

    def __init__(self, device: str, dtype: torch.dtype, layout: str, peer: Any) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.device, self.dtype, self.format, self.peer = device, dtype, FORMATS[layout], peer

    def tensor(self, *shape: int, grad: bool = True, scale: float = 1.0) -> Tensor:
        values = (torch.randn(shape, generator=self.random) * scale).to(self.device, self.dtype)
        if len(shape) == 4:
            values = values.contiguous(memory_format=self.format)
        return values.requires_grad_(grad)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.random)

    def boxes(self, count: int, smallest: float = 16, largest: float = 400) -> Tensor:
        """``(count, 4)`` inside the image; sides are log-uniform, as a detector's are."""
        span = math.log(largest / smallest)
        sides = smallest * (self.uniform(count, 2) * span).exp()
        image = torch.tensor([float(IMAGE[1]), float(IMAGE[0])])
        start = self.uniform(count, 2) * (image - sides).clamp(min=0)
        return torch.cat([start, torch.minimum(start + sides, image)], 1).to(self.device, self.dtype)

    def rois(self, count: int) -> Tensor:
        boxes = self.boxes(count)
        return torch.cat([boxes.new_zeros(count, 1), boxes], 1)


def _size(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _deform_conv2d(channels: int, height: int, width: int, batch: int, masked: bool) -> Callable[[Make], Work]:
    def make(on: Make) -> Work:
        input = on.tensor(batch, channels, height, width)
        offset = on.tensor(batch, 18, height, width, scale=2.0)
        mask = on.tensor(batch, 9, height, width).detach().sigmoid().requires_grad_() if masked else None
        weight, bias = on.tensor(channels, channels, 3, 3, scale=0.02), on.tensor(channels)
        pixels, inner = batch * height * width, 9 * channels
        gemm, samples = 2.0 * channels * inner * pixels, float(inner * pixels)
        inputs = [tensor for tensor in (input, offset, mask, weight, bias) if tensor is not None]
        products = [(pixels, inner, channels)]
        return Work(
            ours=lambda: ops.deform_conv2d(input, offset, weight, bias, padding=1, mask=mask),
            theirs=on.peer and (lambda: on.peer.deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)),
            leaves=inputs,
            forward=Cost(_size(*inputs, input), gemm + (9 if masked else 8) * samples),
            backward=Cost(2 * _size(*inputs) + _size(input), 2 * gemm + 18 * samples),
            conv2d=lambda: torch.nn.functional.conv2d(input, weight, bias, padding=1),
            conv2d_leaves=[input, weight, bias],
            gemms={
                "forward": products,
                "forward+backward": [*products, (pixels, channels, inner), (channels, pixels, inner)],
            },
        )

    return make


def _samples(boxes: Tensor, scale: float, bins: int, ratio: int) -> float:
    """How many points the bins of all boxes sample, ``ratio`` squared each or one per covered pixel."""
    if ratio > 0:
        return float(len(boxes) * bins * bins * ratio * ratio)
    sides = (boxes[:, 3:5] - boxes[:, 1:3]).double() * scale / bins
    return float(sides.ceil().clamp(min=1).prod(1).sum()) * bins * bins


def _pool(
    name: str, count: int, channels: int, stride: int, ratio: int = 0, out: int = 0, **extra: Any
) -> Callable[[Make], Work]:
    """A pooling of 7x7 bins; ``out`` channels of the answer where the bins have channels of their own."""

    def make(on: Make) -> Work:
        input, boxes = on.tensor(1, channels, IMAGE[0] // stride, IMAGE[1] // stride), on.rois(count)
        settings = {"output_size": 7, "spatial_scale": 1 / stride, **extra}
        if name in ("roi_align", "ps_roi_align", "deform_roi_pool"):
            settings["sampling_ratio"] = ratio
        leaves = [input]
        if name.startswith("deform"):
            settings["offset"] = on.tensor(count, 2, 7, 7)
            leaves.append(settings["offset"])
        peer = getattr(on.peer, name, None)
        answer = count * (out or channels) * 49 * input.element_size()
        each = (
            1 if name in ("roi_pool", "ps_roi_pool") else 8
        )  # a comparison or addition; else four multiplied and added
        operations = each * _samples(boxes, 1 / stride, 7, ratio) * (out or channels)
        moved = _size(*leaves, boxes) + answer
        return Work(
            ours=lambda: getattr(ops, name)(input, boxes, **settings),
            theirs=peer and (lambda: peer(input, boxes, **settings)),
            leaves=leaves,
            forward=Cost(moved, operations),
            backward=Cost(moved, operations if each == 8 else answer / input.element_size()),
        )

    return make


def _multi_scale(on: Make) -> Work:
    strides = (4, 8, 16, 32)
    maps = {str(i): on.tensor(1, 256, IMAGE[0] // stride, IMAGE[1] // stride) for i, stride in enumerate(strides)}
    boxes = on.boxes(1000)
    ours = ops.MultiScaleRoIAlign(list(maps), 7, 2)
    peer = on.peer and on.peer.MultiScaleRoIAlign(list(maps), 7, 2)
    moved = _size(*maps.values(), boxes) + 1000 * 256 * 49 * boxes.element_size()
    cost = Cost(moved, 8 * 1000 * 49 * 4 * 256)
    return Work(
        ours=lambda: ours(maps, [boxes], [IMAGE]),
        theirs=peer and (lambda: peer(maps, [boxes], [IMAGE])),
        leaves=list(maps.values()),
        forward=cost,
        backward=cost,
    )


def _suppress(name: str, count: int, dense: bool) -> Callable[[Make], Work]:
    def make(on: Make) -> Work:
        boxes = on.boxes(count, 32, 128) if dense else on.boxes(count, 4, 16)
        scores = on.uniform(count).to(on.device, on.dtype)
        groups = torch.randint(80, (count,), generator=on.random).to(on.device)
        arguments = {
            "nms": (boxes, scores, 0.5),
            "batched_nms": (boxes, scores, groups, 0.5),
            "nms_padded": (boxes, scores, 0.5, 1000),
            "soft_nms": (boxes, scores),
        }[name]
        peer = getattr(on.peer, "nms" if name == "nms_padded" else name, None)
        kept = len(ops.batched_nms(*arguments)) if name == "batched_nms" else len(ops.nms(boxes, scores, 0.5))
        order = count * math.log2(count)
        return Work(
            ours=lambda: getattr(ops, name)(*arguments),
            theirs=peer and (lambda: peer(*arguments[: 4 if name == "batched_nms" else 3])),
            leaves=[],
            forward=Cost(_size(boxes, scores) + 8 * kept, order + 12 * (count - kept)),
        )

    return make


def _box_iou(on: Make) -> Work:
    boxes = [on.boxes(1000), on.boxes(5000)]
    return Work(
        ours=lambda: ops.box_iou(*boxes),
        theirs=on.peer and (lambda: on.peer.box_iou(*boxes)),
        leaves=[],
        forward=Cost(_size(*boxes) + 5_000_000 * boxes[0].element_size(), 13 * 5e6),
    )


def _all() -> list[Case]:
    cases = [
        Case(
            "deform_conv2d",
            f"{channels}@{height}x{width} {'v2' if masked else 'v1'} batch {batch}",
            _deform_conv2d(channels, height, width, batch, masked),
            quick=masked and batch == 1,
        )
        for channels, height, width in ((128, 100, 76), (256, 50, 38), (512, 25, 19))
        for batch in (1, 2)
        for masked in (False, True)
    ]
    for ratio, label in ((2, "sampling 2"), (0, "adaptive")):
        cases.append(
            Case("roi_align", f"1000 on 256@200x152 {label}", _pool("roi_align", 1000, 256, 4, ratio), quick=ratio == 2)
        )
    cases.append(Case("roi_pool", "1000 on 256@200x152", _pool("roi_pool", 1000, 256, 4), quick=True))
    cases.append(Case("multi_scale_roi_align", "1000 on P2-P5", _multi_scale, quick=True))
    wide = 81 * 49
    for name, extra in (
        ("ps_roi_align", {"ratio": 2}),
        ("ps_roi_pool", {}),
        ("deform_ps_roi_pool", {"ratio": 4, "group_size": 7}),
    ):
        cases.append(Case(name, "300 on 3969@50x38", _pool(name, 300, wide, 16, out=81, **extra), quick=True))
    cases.append(
        Case("deform_roi_pool", "300 on 256@50x38", _pool("deform_roi_pool", 300, 256, 16, ratio=2), quick=True)
    )
    flat = ("contiguous",)
    for count in (1000, 5000, 20000):
        for dense in (True, False):
            label = f"{count // 1000}k {'dense' if dense else 'sparse'}"
            cases.append(Case("nms", label, _suppress("nms", count, dense), flat, quick=count == 5000))
    for name, count in (("batched_nms", 5000), ("nms_padded", 5000), ("soft_nms", 1000)):
        label = f"{count // 1000}k dense" + (" 80 classes" if name == "batched_nms" else "")
        cases.append(Case(name, label, _suppress(name, count, True), flat, quick=True))
    cases.append(Case("box_iou", "1000x5000", _box_iou, flat, quick=True))
    return cases


CASES = _all()

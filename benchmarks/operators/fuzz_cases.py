"""What a fuzz case of each operator is: the call, and the shape of its answer or a test of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from operators.fuzz_draw import Draw
from visionlab import ops


def _nms(draw: Draw) -> tuple:
    count = draw.size(40)
    boxes, scores, threshold = draw.plain_boxes(count), draw.tensor(count, low=0.0), draw.number(0, 1)
    return lambda: ops.nms(boxes, scores, threshold), _indices(boxes)


def _batched_nms(draw: Draw) -> tuple:
    count = draw.size(40)
    boxes, scores, threshold = draw.plain_boxes(count), draw.tensor(count, low=0.0), draw.number(0, 1)
    low, high = draw.choose([(0, 2), (-2, 2), (-(2**63), 2**63 - 1)])
    groups = torch.tensor([draw.random.randint(low, high) for _ in range(count)], dtype=torch.int64)
    idxs = groups.to(boxes.device, draw.choose([torch.int64, torch.int32, torch.uint8]))
    return lambda: ops.batched_nms(boxes, scores, idxs, threshold), _indices(boxes)


def _nms_padded(draw: Draw) -> tuple:
    count, most = draw.size(40), draw.size(50)
    boxes, scores, threshold = draw.plain_boxes(count), draw.tensor(count, low=0.0), draw.number(0, 1)

    def fits(answer: tuple[Tensor, Tensor]) -> bool:
        indices, kept = answer
        return indices.shape == (most,) and indices.dtype == torch.int64 and 0 <= int(kept) <= min(most, count)

    return lambda: ops.nms_padded(boxes, scores, threshold, most), fits


def _soft_nms(draw: Draw) -> tuple:
    count = draw.size(30)
    boxes, scores = draw.plain_boxes(count), draw.tensor(count, low=0.0)
    settings = (draw.number(0, 1), draw.number(0.1, 1), draw.number(0, 0.3), draw.choose(["linear", "gaussian"]))

    def fits(answer: tuple[Tensor, Tensor]) -> bool:
        keep, kept_scores = answer
        return _indices(boxes)(keep) and keep.shape == kept_scores.shape and kept_scores.dtype == draw.dtype

    return lambda: ops.soft_nms(boxes, scores, *settings), fits


def _indices(boxes: Tensor) -> Callable[[Any], bool]:
    def fits(keep: Tensor) -> bool:
        inside = bool(((keep >= 0) & (keep < boxes.shape[0])).all())
        return keep.dtype == torch.int64 and keep.dim() == 1 and inside and len(keep.unique()) == len(keep)

    return fits


def _box_iou(draw: Draw) -> tuple:
    boxes = [draw.plain_boxes(draw.size(12), grad=True) for _ in range(2)]
    if draw.kind == "tame" and any((part[:, 2:] == part[:, :2]).any() for part in boxes):
        draw.kind = "hostile"  # two boxes without area have NaN
    dtype = torch.float64 if draw.dtype == torch.float64 else torch.float32  # halves are widened, as in torchvision

    def fits(answer: Tensor) -> bool:
        return answer.shape == (len(boxes[0]), len(boxes[1])) and answer.dtype == dtype

    return lambda: ops.box_iou(*boxes), fits


def _map(draw: Draw, channels: int) -> Tensor:
    return draw.tensor(draw.size(3), channels, draw.size(9, 1), draw.size(9, 1))


def _bins(draw: Draw) -> tuple[int, int]:
    return draw.size(4, 1), draw.size(4, 1)


def _pooled(draw: Draw, position_sensitive: bool = False) -> tuple:
    """Input, boxes, bins, scale and the shape of the answer."""
    bins, channels = _bins(draw), draw.size(20 if not position_sensitive else 3)
    input = _map(draw, channels * bins[0] * bins[1] if position_sensitive else channels)
    sizes = (*input.shape, 1, 1, 1, 1)[:4]
    boxes = draw.rois(draw.size(6), sizes[0], 2 * sizes[2], 2 * sizes[3])
    count = sum(len(part) for part in boxes) if isinstance(boxes, list) else len(boxes)
    return input, boxes, bins, draw.number(0.2, 1), (count, channels, *bins)


def _roi_align(draw: Draw) -> tuple:
    input, boxes, bins, scale, shape = _pooled(draw)
    ratio, aligned = draw.choose([-1, 0, 1, 2, 3]), draw.chance(0.5)
    return lambda: ops.roi_align(input, boxes, bins, scale, ratio, aligned), shape


def _roi_pool(draw: Draw) -> tuple:
    input, boxes, bins, scale, shape = _pooled(draw)
    return lambda: ops.roi_pool(input, boxes, bins, scale), shape


def _ps_roi_align(draw: Draw) -> tuple:
    input, boxes, bins, scale, shape = _pooled(draw, position_sensitive=True)
    ratio = draw.choose([-1, 0, 1, 2, 3])
    return lambda: ops.ps_roi_align(input, boxes, bins, scale, ratio), shape


def _ps_roi_pool(draw: Draw) -> tuple:
    input, boxes, bins, scale, shape = _pooled(draw, position_sensitive=True)
    return lambda: ops.ps_roi_pool(input, boxes, bins, scale), shape


def _deform_roi_pool(draw: Draw) -> tuple:
    input, boxes, bins, scale, shape = _pooled(draw)
    offset = draw.tensor(shape[0], 2, *bins) if draw.chance(0.8) else None
    mask = draw.tensor(shape[0], 1, *bins) if draw.chance(0.5) else None
    ratio, gamma = draw.choose([-1, 0, 1, 2]), draw.number(0, 1)
    return lambda: ops.deform_roi_pool(input, boxes, offset, bins, scale, ratio, gamma, mask), shape


def _deform_ps_roi_pool(draw: Draw) -> tuple:
    group, side, part, classes = draw.size(3, 1), draw.size(4, 1), draw.size(3, 1), draw.size(3, 1)
    out = classes * draw.size(2, 1)
    input = _map(draw, out * group * group)
    sizes = (*input.shape, 1, 1, 1, 1)[:4]
    boxes = draw.rois(draw.size(6), sizes[0], 2 * sizes[2], 2 * sizes[3])
    count = sum(len(of_image) for of_image in boxes) if isinstance(boxes, list) else len(boxes)
    offset = draw.tensor(count, 2 * classes, part, part) if draw.chance(0.8) else None
    mask = draw.tensor(count, 1, side, side) if draw.chance(0.4) else None
    settings = (side, draw.number(0.2, 1), group, part, draw.size(3, 1), draw.number(0, 1))
    return lambda: ops.deform_ps_roi_pool(input, boxes, offset, *settings, mask), (count, out, side, side)


def _multi_scale_roi_align(draw: Draw) -> tuple:
    levels, batch, channels, bins = draw.size(4, 1), draw.size(3), draw.size(9), _bins(draw)
    features = [draw.tensor(batch, channels, 32 >> level, 24 >> level) for level in range(levels)]
    scales = [0.25 / 2**level for level in range(levels)]
    boxes = [draw.plain_boxes(draw.size(4), 128, 96) for _ in range(batch)]
    ratio, count = draw.choose([-1, 0, 1, 2]), sum(len(of_image) for of_image in boxes)
    return (
        lambda: ops.multi_scale_roi_align(features, boxes, bins, scales, sampling_ratio=ratio),
        (count, channels, *bins),
    )


def _deform_conv2d(draw: Draw) -> tuple:
    groups, offset_groups = draw.size(2, 1), draw.size(2, 1)
    channels, out = groups * offset_groups * draw.size(5, 1), groups * draw.size(5, 1)
    kernel, stride = (draw.size(3, 1), draw.size(3, 1)), (draw.size(3, 1), draw.size(3, 1))
    padding, dilation = (draw.size(2), draw.size(2)), (draw.size(2, 1), draw.size(2, 1))
    span = [dilation[dim] * (kernel[dim] - 1) + 1 for dim in range(2)]
    batch, size = draw.size(3), [max(draw.size(9, 1), span[dim]) for dim in range(2)]
    input = draw.tensor(batch, channels, *size)
    outputs = [(size[dim] + 2 * padding[dim] - span[dim]) // (stride[dim] or 1) + 1 for dim in range(2)]
    points = kernel[0] * kernel[1]
    offset = draw.tensor(batch, 2 * offset_groups * points, *outputs)
    mask = draw.tensor(batch, offset_groups * points, *outputs) if draw.chance(0.5) else None
    weight = draw.tensor(out, channels // (groups or 1), *kernel)
    bias = draw.tensor(out) if draw.chance(0.5) else None
    return (
        lambda: ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask),
        (batch, out, *outputs),
    )


CASES: dict[str, Callable[[Draw], tuple]] = {
    "batched_nms": _batched_nms,
    "box_iou": _box_iou,
    "deform_conv2d": _deform_conv2d,
    "deform_ps_roi_pool": _deform_ps_roi_pool,
    "deform_roi_pool": _deform_roi_pool,
    "multi_scale_roi_align": _multi_scale_roi_align,
    "nms": _nms,
    "nms_padded": _nms_padded,
    "ps_roi_align": _ps_roi_align,
    "ps_roi_pool": _ps_roi_pool,
    "roi_align": _roi_align,
    "roi_pool": _roi_pool,
    "soft_nms": _soft_nms,
}

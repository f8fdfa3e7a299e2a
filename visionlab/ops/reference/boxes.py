"""Intersection over union of boxes in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = ("xyxy", "xywh", "cxcywh")  # an operator takes the position in this list


def box_iou(boxes1: Tensor, boxes2: Tensor, format: int) -> Tensor:
    """Return the ``(..., N, M)`` overlaps of ``(..., N, 4)`` and ``(..., M, 4)`` boxes of any dtype."""
    (start1, end1, area1), (start2, end2, area2) = (_corners_and_area(boxes, format) for boxes in (boxes1, boxes2))
    start = torch.maximum(start1[..., :, None, :], start2[..., None, :, :])
    end = torch.minimum(end1[..., :, None, :], end2[..., None, :, :])
    size = upcast(end - start).clamp(min=0)
    shared = size[..., 0] * size[..., 1]
    return shared / (area1[..., :, None] + area2[..., None, :] - shared)


def box_iou_backward(grad: Tensor, boxes: Tensor, others: Tensor, format: int) -> Tensor:
    """Return the gradient of ``(B, N, 4)`` boxes for that of their ``(B, N, M)`` overlaps with the others."""
    start1, end1, area1 = (values[:, :, None] for values in _corners_and_area(boxes, format))
    start2, end2, area2 = (values[:, None] for values in _corners_and_area(others, format))
    raw = torch.minimum(end1, end2) - torch.maximum(start1, start2)
    size = raw.clamp(min=0)
    shared = size.prod(3)
    together = area1 + area2 - shared
    by_union = -grad * (shared / together / together)
    by_size = torch.where(raw < 0, 0, (grad / together - by_union)[..., None] * size.flip(3))
    by_start = -(by_size * _share(start1, start2)).sum(2)
    by_end = (by_size * _share(end2, end1)).sum(2)
    by_area = by_union.sum(2)[..., None]
    if format == 0:
        along = by_area * (boxes[..., 2:] - boxes[..., :2]).flip(2)
        return torch.cat((by_start - along, by_end + along), 2)
    by_side = by_end if format == 1 else (by_end - by_start) / 2
    return torch.cat((by_start + by_end, by_side + by_area * boxes[..., 2:].flip(2)), 2)


def box_area(boxes: Tensor, format: int) -> Tensor:
    """Return the ``(...)`` areas of ``(..., 4)`` boxes."""
    boxes = upcast(boxes)
    sides = boxes[..., 2:] - boxes[..., :2] if format == 0 else boxes[..., 2:]
    return sides[..., 0] * sides[..., 1]


def upcast(tensor: Tensor) -> Tensor:
    """Return numbers whose products do not overflow: half types as float32, small integers as int32."""
    if tensor.is_floating_point():
        return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return tensor if tensor.dtype in (torch.int32, torch.int64) else tensor.int()


def _corners_and_area(boxes: Tensor, format: int) -> tuple[Tensor, Tensor, Tensor]:
    first, second = boxes[..., :2], boxes[..., 2:]
    area = box_area(boxes, format)
    if format == 0:
        return first, second, area
    if format == 1:
        return first, first + second, area
    return first - second / 2, first + second / 2, area


def _share(a: Tensor, b: Tensor) -> Tensor:
    """How much of a gradient goes to ``a``, chosen over ``b`` because it is greater: half of it at a tie."""
    return (a > b).to(a.dtype) + (a == b).to(a.dtype) / 2

"""Non-maximum suppression in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.reference.box_values import check_finite

_NMS_BLOCK = 1024  # boxes settled at once; bounds memory at block * N


def nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that no kept box of higher score, and of the same group, overlaps too much."""
    check_finite("nms", boxes)
    if scores.isnan().any():
        raise RuntimeError(f"nms: scores: expected no NaN, got one in box {int(scores.isnan().nonzero()[0])}")
    order = scores.sort(descending=True, stable=True).indices
    boxes = boxes[order]
    groups = torch.zeros_like(order) if idxs is None else idxs[order]
    kept = torch.ones_like(order, dtype=torch.bool)
    for start in range(0, len(boxes), _NMS_BLOCK):
        block = slice(start, start + _NMS_BLOCK)
        hits = (_iou(boxes[block], boxes[start:]).double() > iou_threshold) & (groups[block, None] == groups[start:])
        _settle(kept[start:], hits, len(boxes[block]))
    return order[kept]


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    """Return the first ``max_output`` indices that ``nms`` keeps, filled up with zeros, and their number."""
    kept = nms(boxes, scores, None, iou_threshold)[:max_output]
    indices = kept.new_zeros(max_output)
    indices[: len(kept)] = kept
    return indices, torch.full((), len(kept), dtype=torch.int64, device=boxes.device)


def _settle(kept: Tensor, hits: Tensor, size: int) -> None:
    """Decide the first ``size`` boxes and remove what they suppress, in place.

    A box is right as soon as all before it are, so repeating the rule until nothing changes gives the greedy answer.
    """
    among = hits[:, :size].triu(1)
    before = kept[:size].clone()
    while True:
        after = before & ~(among & kept[:size, None]).any(0)
        if after.equal(kept[:size]):
            break
        kept[:size] = after
    kept[size:] &= ~(hits[:, size:] & after[:, None]).any(0)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    top_left = torch.maximum(a[:, None, :2], b[:, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(2)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)

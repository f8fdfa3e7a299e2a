"""Suppression of boxes in ONNX: by its own NonMaxSuppression, and by a loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visionlab.ops.onnx.loop import repeat_while
from visionlab.ops.reference.boxes import box_iou


def _survivors(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Return the boxes in order of score, and for each in that order whether ONNX's NonMaxSuppression keeps it."""
    boxes = (boxes - boxes.min()).float()
    if idxs is not None:  # boxes of different groups move apart
        boxes = boxes + ((idxs - idxs.min()) * (boxes.max() + 1))[:, None]
    limit = torch.full((1,), torch.iinfo(torch.int64).max, dtype=torch.int64)
    # How many boxes are kept is known only when the model runs. This number stands for it in shapes, and nowhere else.
    unknown: Any = scores.isfinite().sum().item()
    torch._check(unknown >= 0)
    # Rows (batch, class, box) of the boxes that are kept.
    rows = torch.onnx.ops.symbolic(
        "NonMaxSuppression",
        (boxes[None], scores.float()[None, None], limit, torch.full((1,), iou_threshold)),
        dtype=torch.int64,
        shape=(unknown, 3),
        version=11,
    )
    kept = torch.zeros_like(scores, dtype=torch.int64).scatter(0, rows[:, 2], rows[:, 1] + 1)
    order = scores.sort(descending=True).indices  # becomes TopK, which puts the first of equal scores first
    return order, kept[order]


def nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that are kept."""
    order, kept = _survivors(boxes, scores, idxs, iou_threshold)
    return order[kept.nonzero()[:, 0]]


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the boxes that are kept, padded to a fixed number, and how many there are."""
    order, kept = _survivors(boxes, scores, None, iou_threshold)
    place = torch.where(kept > 0, kept.cumsum(0) - 1, max_output).clamp(max=max_output)
    indices = order.new_zeros((max_output + 1,)).scatter(0, place, order)[:max_output]
    return indices, kept.sum().clamp(max=max_output)


def soft_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, score_threshold: float, method: int
) -> tuple[Tensor, Tensor]:
    """Return indices in the order in which boxes are taken, and their lowered scores: a loop over boxes."""
    iou = box_iou(boxes, boxes, 0).nan_to_num(0)
    weights = (-iou.square() / sigma).exp() if method == 1 else torch.where(iou >= iou_threshold, 1 - iou, 1.0)
    out = torch.full_like(scores[:1], -torch.inf)  # the score of a box that is taken or dropped
    least = torch.full_like(out, score_threshold)

    def any_left(taken: Tensor, scores: Tensor, keep: Tensor, lowered: Tensor) -> Tensor:
        return scores.max() > -torch.inf

    def take_best(taken: Tensor, scores: Tensor, keep: Tensor, lowered: Tensor) -> tuple[Tensor, ...]:
        best = scores.argmax(0, keepdim=True)
        keep, lowered = keep.scatter(0, taken, best), lowered.scatter(0, taken, scores.index_select(0, best))
        after = scores.clamp(min=torch.finfo(scores.dtype).min) * weights.index_select(0, best)[0]
        left = (scores > -torch.inf) & (after >= least)
        return taken + 1, torch.where(left, after, out).scatter(0, best, out), keep, lowered

    start = (
        torch.zeros(1, dtype=torch.int64, device=scores.device),
        torch.where(scores < least, out, scores),
        torch.zeros_like(scores, dtype=torch.int64),
        torch.zeros_like(scores),
    )
    taken, _, keep, lowered = repeat_while(any_left, take_best, start)
    first = (torch.arange(scores.shape[0], device=scores.device) < taken).nonzero()[:, 0]
    return keep[first], lowered[first]

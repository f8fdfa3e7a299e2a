"""Suppression of boxes in ONNX: by its own NonMaxSuppression, and by a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionlab.ops.onnx.loop import repeat_while
from visionlab.ops.reference.boxes import box_iou


def _survivors(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Return the boxes of each set in order of score, and for each in that order whether NonMaxSuppression keeps it.

    Args:
        boxes: ``(S, N, 4)``.
        scores: ``(S, N)``.
        iou_threshold: see ``nms``.
    """
    count = boxes.shape[1]
    limit = torch.full((1,), torch.iinfo(torch.int64).max, dtype=torch.int64)
    # How many boxes are kept is known only when the model runs. This number stands for it in shapes, and nowhere else.
    unknown: Any = scores.isfinite().sum().item()
    torch._check(unknown >= 0)
    # Rows (set, class, box) of the boxes that are kept.
    rows = torch.onnx.ops.symbolic(
        "NonMaxSuppression",
        (boxes.float(), scores.float()[:, None], limit, torch.full((1,), _round_down(iou_threshold))),
        dtype=torch.int64,
        shape=(unknown, 3),
        version=11,
    )
    places, ones = rows[:, 0] * count + rows[:, 2], rows[:, 1] + 1
    kept = torch.zeros_like(scores, dtype=torch.int64).flatten().scatter(0, places, ones).view_as(scores)
    order = scores.sort(descending=True).indices  # becomes TopK, which puts the first of equal scores first
    return order, kept.gather(1, order)


def _round_down(threshold: float) -> float:
    """Return the greatest fp32 number that is not above the threshold, so that ``iou > threshold`` means the same."""
    rounded = np.float32(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf)))


def nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that are kept."""
    if idxs is not None:  # boxes of different groups move apart
        boxes = (boxes - boxes.min()).float()
        boxes = boxes + ((idxs - idxs.min()) * (boxes.max() + 1))[:, None]
    order, kept = _survivors(boxes[None], scores[None], iou_threshold)
    return order[0][kept[0].nonzero()[:, 0]]


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the boxes that are kept, padded to a fixed number, and how many there are."""
    indices, counts = nms_padded_sets(boxes[None], scores[None], iou_threshold, max_output)
    return indices[0], counts[0]


def nms_padded_sets(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    """Return the same of each of several sets of boxes."""
    order, kept = _survivors(boxes, scores, iou_threshold)
    place = torch.where(kept > 0, kept.cumsum(1) - 1, max_output).clamp(max=max_output)
    indices = order.new_zeros((order.shape[0], max_output + 1)).scatter(1, place, order)[:, :max_output]
    return indices, kept.sum(1).clamp(max=max_output)


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

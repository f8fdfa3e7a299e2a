"""Of alike boxes of one class the best: the others are left out, or lose score."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from visionlab.ops import batched_nms, soft_nms

Nms = Literal["hard", "soft_linear", "soft_gaussian"]


def suppress(
    kind: Nms,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Compare the boxes of each class with each other.

    Args:
        kind: ``hard`` leaves out what overlaps a better box by more than ``iou_threshold``; ``soft_linear`` multiplies
            its score by one minus the IoU instead; ``soft_gaussian`` multiplies any score by ``exp(-iou² / sigma)``.
        boxes: ``(N, 4)`` in pixels.
        scores: ``(N,)``, all above ``score_threshold``.
        labels: ``(N,)`` int64, the class of each box.
        iou_threshold: in ``[0, 1]``.
        sigma: above 0.
        score_threshold: a box whose score falls to it is left out.

    Returns:
        ``(K,)`` int64, the boxes that stay, best first, and ``(K,)`` their scores.

    Source: Bodla et al., Soft-NMS, 2017, arXiv:1704.04503.
    """
    if kind == "hard":
        kept = batched_nms(boxes, scores, labels, iou_threshold)
        return kept, scores[kept]
    # Class by class, which is exact and the least work: shifting the boxes of each class to a place of their own, to
    # compare all at once, would cost digits, and time with the square of all boxes instead of those of a class.
    order = labels.argsort(stable=True)
    counts = labels.bincount().tolist()
    method = kind.removeprefix("soft_")
    kept_of_classes, lowered_of_classes = [order[:0]], [scores[:0]]
    for rows in order.split([count for count in counts if count]):
        kept, lowered = soft_nms(boxes[rows], scores[rows], iou_threshold, sigma, score_threshold, method)
        kept_of_classes.append(rows[kept])
        lowered_of_classes.append(lowered)
    kept, lowered = torch.cat(kept_of_classes), torch.cat(lowered_of_classes)
    best_first = lowered.argsort(descending=True, stable=True)
    best_first = best_first[lowered[best_first] > score_threshold]
    return kept[best_first], lowered[best_first]

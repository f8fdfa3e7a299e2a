"""Soft-NMS in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.reference.box_values import check_finite
from visionlab.ops.reference.boxes import box_iou


def soft_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, score_threshold: float, method: int
) -> tuple[Tensor, Tensor]:
    """Return indices in the order in which boxes are taken, and their lowered scores."""
    check_finite("soft_nms", boxes)
    check_finite("soft_nms", scores, "scores")
    scores = scores.masked_fill(scores.double() < score_threshold, -torch.inf)
    keep: list[Tensor] = []
    lowered: list[Tensor] = []
    for _ in range(len(boxes)):
        best = (scores == scores.max()).nonzero()[0, 0]
        if scores[best] == -torch.inf:
            break
        keep.append(best)
        lowered.append(scores[best])
        iou = box_iou(boxes[best][None], boxes, 0)[0].nan_to_num(0)
        if method == 1:
            weight = (-iou.square() / sigma).exp()
        else:
            weight = torch.where(iou.double() >= iou_threshold, 1 - iou, 1)
        after = scores.clamp(min=torch.finfo(scores.dtype).min) * weight
        after = torch.where(after.double() < score_threshold, -torch.inf, after)
        scores = torch.where(scores == -torch.inf, scores, after)
        scores[best] = -torch.inf
    indices = torch.stack(keep) if keep else torch.empty(0, dtype=torch.int64, device=boxes.device)
    return indices, torch.stack(lowered) if lowered else scores.new_empty(0)

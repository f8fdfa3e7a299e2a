"""The losses of predicted boxes: of their offsets, or of how the boxes lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from visionlab.models.box_coding import decode_boxes, encode_boxes

BoxLoss = Literal["smooth_l1", "l1", "giou", "diou"]
EPSILON = 1e-7  # keeps ratios of boxes without area finite


def compare_boxes(
    kind: BoxLoss,
    offsets: Tensor,
    references: Tensor,
    boxes: Tensor,
    mask: Tensor,
    *,
    weights: Sequence[float],
    beta: float,
) -> Tensor:
    """Return the losses of the boxes that ``mask`` selects, and 0 for the others.

    Args:
        kind: ``smooth_l1`` and ``l1`` compare offsets, ``giou`` and ``diou`` the boxes that they make.
        offsets: ``(N, 4)`` predicted.
        references: ``(N, 4)`` in pixels, anchors or proposals, which the offsets start from.
        boxes: ``(N, 4)`` in pixels, what the boxes should be; may be anything where the mask is False.
        mask: ``(N,)`` bool, the positives.
        weights: factors of ``dx, dy, dw, dh``.
        beta: the distance at which ``smooth_l1`` turns from square to linear.

    Returns:
        ``(N, 4)``, a loss for each offset, or ``(N, 1)``, one for each box; with gradient 0 where the mask is False.
    """
    if kind in ("smooth_l1", "l1"):
        targets = encode_boxes(boxes, references, weights)
        return offset_loss(offsets, targets, mask, beta if kind == "smooth_l1" else 0.0)
    # References stand in for what is masked: of them, decoding and the loss are finite whatever was predicted.
    predicted = decode_boxes(torch.where(mask[:, None], offsets, 0), references, weights)
    loss = giou_loss if kind == "giou" else diou_loss
    return torch.where(mask, loss(predicted, torch.where(mask[:, None], boxes, references)), 0)[:, None]


def offset_loss(offsets: Tensor, targets: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Return the smooth L1 loss of the offsets that ``mask`` selects.

    Args:
        offsets: ``(..., 4)`` predicted.
        targets: ``(..., 4)`` as ``encode_boxes`` returns them; may be anything, even NaN, where the mask is False.
        mask: ``(...)`` bool, the positives.
        beta: the distance at which the loss turns from square to linear; 0 is plain L1.

    Returns:
        ``(..., 4)``; 0, with gradient 0, where the mask is False.

    Source: Girshick, Fast R-CNN, 2015, arXiv:1504.08083, eq. 3.
    """
    targets = torch.where(mask[..., None], targets, 0)
    return F.smooth_l1_loss(offsets, targets, reduction="none", beta=beta) * mask[..., None]


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return ``1 - GIoU`` of each pair of boxes: it falls as they come closer even where they do not overlap.

    Args:
        boxes: ``(..., 4)`` in pixels.
        targets: ``(..., 4)`` in pixels.

    Returns:
        ``(...)`` in ``[0, 2]``.

    Source: Rezatofighi et al., Generalized Intersection over Union, 2019, arXiv:1902.09630, algorithm 1.
    """
    intersection, union = _intersection_and_union(boxes, targets)
    enclosing = _area(_enclosing_sides(boxes, targets))
    return 1 - intersection / (union + EPSILON) + (enclosing - union) / (enclosing + EPSILON)


def diou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return ``1 - IoU`` of each pair of boxes, and the squared distance of their centers over that of the corners of
    the box around both.

    Args:
        boxes: ``(..., 4)`` in pixels.
        targets: ``(..., 4)`` in pixels.

    Returns:
        ``(...)`` in ``[0, 2]``.

    Source: Zheng et al., Distance-IoU Loss, 2020, arXiv:1911.08287, eq. 7.
    """
    intersection, union = _intersection_and_union(boxes, targets)
    diagonal = _enclosing_sides(boxes, targets).square().sum(dim=-1)
    centers = (boxes[..., :2] + boxes[..., 2:] - targets[..., :2] - targets[..., 2:]) / 2
    return 1 - intersection / (union + EPSILON) + centers.square().sum(dim=-1) / (diagonal + EPSILON)


def _intersection_and_union(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(boxes[..., :2], targets[..., :2]), torch.minimum(boxes[..., 2:], targets[..., 2:])
    intersection = _area((high - low).clamp(min=0))
    return intersection, _area(boxes[..., 2:] - boxes[..., :2]) + _area(
        targets[..., 2:] - targets[..., :2]
    ) - intersection


def _enclosing_sides(boxes: Tensor, targets: Tensor) -> Tensor:
    return torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]

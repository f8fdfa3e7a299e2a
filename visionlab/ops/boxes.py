"""Plain arithmetic on boxes ``(x1, y1, x2, y2)``, with the names and signatures of ``torchvision.ops``."""

from __future__ import annotations

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of each box.

    Args:
        boxes: ``(..., 4)`` in pixels.

    Returns:
        ``(...)`` in square pixels.
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return the area that each pair of boxes shares.

    Args:
        boxes1: ``(N, 4)`` in pixels.
        boxes2: ``(M, 4)`` in pixels.

    Returns:
        ``(N, M)`` in square pixels.
    """
    width = torch.minimum(boxes1[:, None, 2], boxes2[:, 2]) - torch.maximum(boxes1[:, None, 0], boxes2[:, 0])
    height = torch.minimum(boxes1[:, None, 3], boxes2[:, 3]) - torch.maximum(boxes1[:, None, 1], boxes2[:, 1])
    return width.clamp(min=0) * height.clamp(min=0)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return the intersection over union of each pair of boxes; two boxes without area have 0.

    Args:
        boxes1: ``(N, 4)`` in pixels.
        boxes2: ``(M, 4)`` in pixels.

    Returns:
        ``(N, M)`` in ``[0, 1]``.
    """
    intersection = box_intersection(boxes1, boxes2)
    union = box_area(boxes1)[:, None] + box_area(boxes2) - intersection
    return torch.where(union > 0, intersection / union, 0)


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the part of each box that lies inside the image.

    Args:
        boxes: ``(..., 4)`` in pixels.
        size: ``(height, width)`` of the image.

    Returns:
        ``(..., 4)``; a box outside the image has no area.
    """
    height, width = size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=-1).flatten(-2)


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Return the indices of the boxes whose sides are both at least ``min_size``; a box with NaN is not among them.

    Args:
        boxes: ``(N, 4)`` in pixels.
        min_size: the shortest side that stays, in pixels.

    Returns:
        ``(K,)`` int64, ascending.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.where((sides >= min_size).all(dim=1))[0]

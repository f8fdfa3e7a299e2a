"""Anchors: the boxes that a region proposal network starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Return the anchors of one location, centered at the origin.

    Args:
        sizes: square roots of the anchors' areas, in pixels.
        ratios: heights over widths.

    Returns:
        ``(len(ratios) * len(sizes), 4)`` float32 with coordinates rounded to whole pixels; sizes vary fastest.

    Source: Ren et al., Faster R-CNN, 2015, arXiv:1506.01497; order and rounding are torchvision's.
    """
    # In NumPy, because a config is checked on the meta device, whose arithmetic takes seconds to import.
    height_factor = np.sqrt(np.asarray(ratios, np.float32))
    size = np.asarray(sizes, np.float32)
    width, height = np.outer(1 / height_factor, size).ravel(), np.outer(height_factor, size).ravel()
    return torch.tensor((np.stack((-width, -height, width, height), axis=1) / 2).round())


def grid_anchors(cell: Tensor, grid: tuple[int, int], step: tuple[int, int]) -> Tensor:
    """Return the anchors of every location of a feature map.

    Args:
        cell: ``(A, 4)`` anchors of one location.
        grid: ``(height, width)`` of the feature map.
        step: vertical and horizontal distance of two locations, in pixels; the first location is at pixel 0, 0.

    Returns:
        ``(height * width * A, 4)``: row by row, location by location, anchor by anchor.
    """
    y = torch.arange(grid[0], dtype=cell.dtype, device=cell.device) * step[0]
    x = torch.arange(grid[1], dtype=cell.dtype, device=cell.device) * step[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1)
    return (shifts[:, :, None] + cell).reshape(-1, 4)

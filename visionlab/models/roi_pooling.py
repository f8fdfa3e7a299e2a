"""RoIs of all sizes from a pyramid of features: each is pooled from the level that fits its size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visionlab.ops import roi_align
from visionlab.ops.boxes import box_area


def assign_levels(boxes: Tensor, strides: list[int], canonical_size: float) -> Tensor:
    """Return the level of the pyramid that each box is pooled from.

    Args:
        boxes: ``(K, 4)`` in pixels.
        strides: stride of each level, finest first, each twice the one before.
        canonical_size: a square box of this side in pixels belongs to stride 16, of twice the side to stride 32.

    Returns:
        ``(K,)`` int64 in ``[0, len(strides))``.

    Source: Lin et al., Feature Pyramid Networks, 2016, arXiv:1612.03144, eq. 1.
    """
    octaves = torch.log2(box_area(boxes).sqrt() / canonical_size)
    # The small term keeps a box of exactly the canonical size on its level whatever the rounding.
    level = torch.floor(math.log2(16 / strides[0]) + octaves + 1e-6)
    return level.nan_to_num(0).clamp(min=0, max=len(strides) - 1).to(torch.int64)


def pool_rois(
    features: list[Tensor],
    strides: list[int],
    rois: Tensor,
    *,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float,
) -> Tensor:
    """Pool each RoI from its level by RoIAlign.

    Args:
        features: one ``(N, C, H, W)`` map per stride, finest first.
        strides: as ``assign_levels`` takes them.
        rois: ``(K, 5)``: index of the image in the batch, then the box in pixels.
        output_size: bins on each side.
        sampling_ratio: samples on each side of a bin; 0 adapts them to the RoI.
        aligned: shift the RoIs by half a location, as pixel centers ask for.
        canonical_size: as ``assign_levels`` takes it.

    Returns:
        ``(K, C, output_size, output_size)``.
    """

    def pool(level: int, level_rois: Tensor) -> Tensor:
        return roi_align(features[level], level_rois, output_size, 1 / strides[level], sampling_ratio, aligned)

    if len(strides) == 1:
        return pool(0, rois)
    levels = assign_levels(rois[:, 1:], strides, canonical_size)
    order = levels.argsort(stable=True)
    counts = torch.bincount(levels, minlength=len(strides)).tolist()
    pooled = torch.cat([pool(level, part) for level, part in enumerate(rois[order].split(counts))])
    return pooled[order.argsort()]

"""RoIs of all sizes from a pyramid of features: each is pooled from the level that fits its size."""

from __future__ import annotations

from torch import Tensor

from visionlab.ops.multi_scale_roi_align import assign_levels as assign_levels_by_scale
from visionlab.ops.multi_scale_roi_align import multi_scale_roi_align

CANONICAL_LEVEL = 4  # of stride 16


def assign_levels(boxes: Tensor, strides: list[int], canonical_size: float) -> Tensor:
    """Return the level of the pyramid that each box is pooled from.

    Args:
        boxes: ``(K, 4)`` in pixels.
        strides: stride of each level, finest first, each twice the one before.
        canonical_size: a square box of this side in pixels belongs to stride 16, of twice the side to stride 32.

    Returns:
        ``(K,)`` int64 in ``[0, len(strides))``.
    """
    return assign_levels_by_scale(boxes, [1 / stride for stride in strides], canonical_size, CANONICAL_LEVEL)


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
    scales = [1 / stride for stride in strides]
    return multi_scale_roi_align(
        features, rois, output_size, scales, sampling_ratio, aligned, canonical_size, CANONICAL_LEVEL
    )

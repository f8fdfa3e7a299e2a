"""RoIAlign from a pyramid of features in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from visionlab.ops.formats import memory_format
from visionlab.ops.reference import roi_align as single


def multi_scale_roi_align(
    features: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    pooled_height: int,
    pooled_width: int,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool each box from its level."""
    _check_levels(levels, len(features))
    output = features[0].new_zeros((len(boxes), features[0].shape[1], pooled_height, pooled_width))
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        chosen = (levels == level).nonzero()[:, 0]
        settings = (pooled_height, pooled_width, scale, sampling_ratio, aligned)
        output[chosen] = single.roi_align(feature, boxes[chosen], *settings)
    return output.to(memory_format=memory_format(features[0]))


def multi_scale_roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    levels: Tensor,
    batch: int,
    channels: int,
    heights: list[int],
    widths: list[int],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
    deterministic: bool,
) -> list[Tensor]:
    """Return the gradient of each map."""
    _check_levels(levels, len(scales))
    gradients = []
    for level, (height, width, scale) in enumerate(zip(heights, widths, scales, strict=True)):
        chosen = (levels == level).nonzero()[:, 0]
        gradient = single.roi_align_backward(
            grad[chosen],
            boxes[chosen],
            batch,
            channels,
            height,
            width,
            scale,
            sampling_ratio,
            aligned,
            channels_last,
            deterministic,
        )
        gradients.append(gradient)
    return gradients


def _check_levels(levels: Tensor, count: int) -> None:
    outside = ((levels < 0) | (levels >= count)).nonzero()
    if len(outside):
        box = int(outside[0])
        raise RuntimeError(
            f"multi_scale_roi_align: levels: expected levels in [0, {count}), got {int(levels[box])} in box {box}"
        )

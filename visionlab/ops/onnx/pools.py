"""RoI pooling in ONNX: by its own RoiAlign and MaxRoiPool, and by formulas that read only the cells they need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visionlab.ops.onnx.loop import repeat_while
from visionlab.ops.reference import deform_ps_roi_pool as moved_by_group
from visionlab.ops.reference import deform_roi_pool as moved
from visionlab.ops.reference import roi_pool as max_pool
from visionlab.ops.reference import shifted_bins
from visionlab.ops.reference.bins import rounded_bins
from visionlab.ops.reference.shifted_bins import Bins

UNROLLED = 4  # samples of a bin that are written one after another


def roi_align(
    input: Tensor,
    boxes: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return ONNX's RoiAlign of opset 16."""
    attributes: dict[str, Any] = {
        "mode": "avg",
        "output_height": pooled_height,
        "output_width": pooled_width,
        "spatial_scale": spatial_scale,
        "sampling_ratio": max(sampling_ratio, 0),
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
    }
    return torch.onnx.ops.symbolic(
        "RoiAlign",
        (input, boxes[:, 1:], boxes[:, 0].long()),
        attributes,
        dtype=input.dtype,
        shape=(boxes.shape[0], input.shape[1], pooled_height, pooled_width),
        version=16,
    )


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
    """Return ONNX's RoiAlign of each level for the boxes that belong to it, how many is known when the model runs."""
    settings = pooled_height, pooled_width
    pooled = []
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        own = boxes if len(features) == 1 else boxes[(levels == level).nonzero()[:, 0]]
        pooled.append(roi_align(feature, own, *settings, scale, sampling_ratio, aligned))
    if len(features) == 1:
        return pooled[0]
    by_level = levels.sort().indices  # becomes TopK, which puts the first of equal levels first
    return torch.cat(pooled)[by_level.sort().indices]


def roi_pool(
    input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """Return ONNX's MaxRoiPool, which knows fp32; fp64 is a formula over whole maps. No graph reads the argmax."""
    shape = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    unread = input.new_zeros(shape if with_argmax else 0, dtype=torch.int32)
    if input.dtype == torch.float64:
        return max_pool.formula(input, boxes, pooled_height, pooled_width, spatial_scale, False)[0], unread
    pooled = torch.onnx.ops.symbolic(
        "MaxRoiPool",
        (input.float(), boxes.float()),
        {"pooled_shape": [pooled_height, pooled_width], "spatial_scale": spatial_scale},
        dtype=torch.float32,
        shape=shape,
        version=1,
    )
    return pooled.to(input.dtype), unread


def ps_roi_pool(input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """Return the mean of each bin from the four corners of an integral image, which is summed in fp64."""
    _, channels, height, width = input.shape
    top, bottom = rounded_bins(boxes[:, 2], boxes[:, 4], spatial_scale, pooled_height, height - 1, False)
    left, right = rounded_bins(boxes[:, 1], boxes[:, 3], spatial_scale, pooled_width, width - 1, False)
    top, bottom = (side[:, None, :, None] for side in (top, bottom.maximum(top)))
    left, right = (side[:, None, None, :] for side in (left, right.maximum(left)))
    sums = torch.nn.functional.pad(input.double().cumsum(2).cumsum(3), (1, 0, 1, 0)).reshape(-1)
    plane = boxes[:, 0].long().view(-1, 1, 1, 1) * channels + _channels_of_bins(
        channels, pooled_height, pooled_width, boxes.device
    )

    def sum_before(row: Tensor, column: Tensor) -> Tensor:
        return sums[(plane * (height + 1) + row) * (width + 1) + column]

    total = sum_before(bottom, right) - sum_before(top, right) - sum_before(bottom, left) + sum_before(top, left)
    return (total / ((bottom - top) * (right - left)).clamp(min=1)).to(input.dtype)


def ps_roi_align(
    input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """Pool bins that do not move, each from its own channels."""
    still = boxes.new_zeros((boxes.shape[0], 2, pooled_height, pooled_width))
    bins = moved.bins_of(input, boxes, still, spatial_scale, sampling_ratio, 0.0, max(sampling_ratio, 0))
    channels = _channels_of_bins(input.shape[1], pooled_height, pooled_width, boxes.device)
    return _pool(input, bins._replace(channels=channels), None)


def deform_roi_pool(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Pool each bin where its offset has moved it to."""
    bins = moved.bins_of(input, boxes, offset, spatial_scale, sampling_ratio, gamma, max(sampling_ratio, 0))
    return _pool(input, bins, mask)


def deform_ps_roi_pool(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    group_height: int,
    group_width: int,
    sample_per_part: int,
    gamma: float,
) -> Tensor:
    """Pool each bin, on its own channels, where its offset has moved it to."""
    settings = (spatial_scale, group_height, group_width, sample_per_part, gamma)
    return _pool(input, moved_by_group.bins_of(input, boxes, offset, pooled_height, pooled_width, *settings), mask)


def _channels_of_bins(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return ``(classes, height, width)``: which channel a bin reads."""
    classes = channels // (height * width)
    return torch.arange(classes * height * width, device=device).view(classes, height, width)


def _pool(input: Tensor, bins: Bins, mask: Tensor | None) -> Tensor:
    """Return the mean of the samples of each bin, by a loop where they are many or known only when the model runs."""
    if 0 < bins.rows.most * bins.columns.most <= UNROLLED:
        return shifted_bins.pool(input, bins, mask)
    rows, columns = (
        torch.cat([side.samples.flatten(), side.samples.new_zeros(1)]).amax(0, keepdim=True).long()
        for side in (bins.rows, bins.columns)
    )

    def any_left(index: Tensor, output: Tensor) -> Tensor:
        return (index < rows * columns).all()

    def add_sample(index: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        sample = bins.rows.sample(index // columns), bins.columns.sample(index % columns)
        return index + 1, output + shifted_bins.value(input, bins, *sample)

    start = torch.zeros_like(rows), input.new_zeros((bins.images.shape[0], *bins.channels.shape))
    _, output = repeat_while(any_left, add_sample, start)
    return shifted_bins.mean(output, bins, mask)

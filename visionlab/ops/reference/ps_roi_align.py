"""Position-sensitive RoIAlign in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.formats import memory_format
from visionlab.ops.reference.bins import ROI_BLOCK, linear_weights
from visionlab.ops.reference.box_values import check_boxes, check_samples
from visionlab.ops.reference.position_sensitive import position_sensitive_pool, position_sensitive_spread


def ps_roi_align(
    input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """Pool each box, after checking the values of the boxes."""
    check_boxes("ps_roi_align", boxes, input.shape[0])
    check_samples("ps_roi_align", boxes, (pooled_height, pooled_width), spatial_scale, sampling_ratio)
    settings = (pooled_height, pooled_width, spatial_scale, sampling_ratio)
    output = torch.cat([formula(input, part, *settings) for part in boxes.split(ROI_BLOCK)])
    return output.to(memory_format=memory_format(input))


def formula(
    input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """Pool each box: each channel of a bin, weighted over rows and over columns."""
    settings = (pooled_height, pooled_width, input.shape[2], input.shape[3], spatial_scale, sampling_ratio)
    return position_sensitive_pool(input, boxes, *_weights(boxes, *settings))


def ps_roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    """Return the gradient of the map: the same weights, transposed and summed over boxes."""
    check_boxes("ps_roi_align", boxes, batch)
    check_samples("ps_roi_align", boxes, (grad.shape[2], grad.shape[3]), spatial_scale, sampling_ratio)
    rows, columns = _weights(boxes, grad.shape[2], grad.shape[3], height, width, spatial_scale, sampling_ratio)
    output = position_sensitive_spread(grad, boxes, rows, columns, (batch, channels, height, width))
    return output.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _weights(
    boxes: Tensor, bins_y: int, bins_x: int, height: int, width: int, scale: float, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Return ``(K, bins, size)`` weights of rows and of columns."""
    return (
        linear_weights(boxes[:, 2], boxes[:, 4], scale, bins_y, height, sampling_ratio),
        linear_weights(boxes[:, 1], boxes[:, 3], scale, bins_x, width, sampling_ratio),
    )

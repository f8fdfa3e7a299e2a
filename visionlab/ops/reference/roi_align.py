"""RoIAlign in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from visionlab.ops.formats import memory_format
from visionlab.ops.reference.bins import linear_weights
from visionlab.ops.reference.box_values import check_boxes, check_samples

_ROI_BLOCK = 64  # RoIs pooled at once; bounds memory at block * bins * channels * width


def roi_align(
    input: Tensor,
    boxes: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool each box: a matrix over rows times the map times a matrix over columns."""
    output = input.new_zeros((len(boxes), input.shape[1], pooled_height, pooled_width))
    settings = (spatial_scale, sampling_ratio, aligned)
    bins = (pooled_height, pooled_width)
    for image, rois, rows, columns in _matrices(boxes, input.shape, bins, settings):
        output[rois] = torch.einsum("kph,chw,kqw->kcpq", rows, input[image], columns)
    return output.to(memory_format=memory_format(input))


def roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    """Return the gradient of the map: the transposed matrices, summed over boxes."""
    shape = (batch, channels, height, width)
    output = grad.new_zeros(shape)
    settings = (spatial_scale, sampling_ratio, aligned)
    for image, rois, rows, columns in _matrices(boxes, shape, (grad.shape[2], grad.shape[3]), settings):
        output[image] += torch.einsum("kph,kcpq,kqw->chw", rows, grad[rois], columns)
    return output.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _matrices(
    boxes: Tensor, shape: tuple[int, ...], bins: tuple[int, int], settings: tuple[float, int, bool]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield image, indices of some of its boxes, and their ``(boxes, bins, cells)`` weights of rows and of columns."""
    scale, sampling_ratio, aligned = settings
    check_boxes("roi_align", boxes, shape[0])
    check_samples("roi_align", boxes, bins, scale, sampling_ratio)
    images = boxes[:, 0].long()
    for image in range(shape[0]):
        for rois in (images == image).nonzero()[:, 0].split(_ROI_BLOCK):
            _, left, top, right, bottom = boxes[rois].unbind(1)
            if len(rois):
                rows = linear_weights(top, bottom, scale, bins[0], shape[2], sampling_ratio, aligned)
                columns = linear_weights(left, right, scale, bins[1], shape[3], sampling_ratio, aligned)
                yield image, rois, rows, columns

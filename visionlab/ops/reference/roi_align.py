"""RoIAlign in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from visionlab.ops.reference.formats import memory_format

_ROI_BLOCK = 64  # RoIs pooled at once; bounds memory at block * bins * channels * width
_MOST_SAMPLES = 1 << 16


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
    for image, rois, rows, columns in _matrices(boxes, shape, tuple(grad.shape[2:]), settings):
        output[image] += torch.einsum("kph,kcpq,kqw->chw", rows, grad[rois], columns)
    return output.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _matrices(
    boxes: Tensor, shape: tuple[int, ...], bins: tuple[int, ...], settings: tuple[float, int, bool]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield image, indices of some of its boxes, and their ``(boxes, bins, cells)`` weights of rows and of columns."""
    if not boxes.isfinite().all():
        box = int((~boxes.isfinite()).any(1).nonzero()[0])
        raise RuntimeError(f"roi_align: boxes must be finite, got {boxes[box].tolist()} in box {box}")
    images = boxes[:, 0].long()
    outside = ((images < 0) | (images >= shape[0])).nonzero()
    if len(outside):
        box = int(outside[0])
        raise RuntimeError(
            f"roi_align: the image index of a box must be in [0, {shape[0]}), got {images[box]} in box {box}"
        )
    for image in range(shape[0]):
        for rois in (images == image).nonzero()[:, 0].split(_ROI_BLOCK):
            sides = boxes[rois]
            if len(rois):
                rows = _weights(sides[:, 2], sides[:, 4], bins[0], shape[2], *settings)
                columns = _weights(sides[:, 1], sides[:, 3], bins[1], shape[3], *settings)
                yield image, rois, rows, columns


def _weights(
    begin: Tensor, end: Tensor, bins: int, size: int, scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return ``(K, bins, size)``: how much each cell of one axis counts in each bin."""
    shift = 0.5 if aligned else 0.0
    start = begin * scale - shift
    length = end * scale - shift - start
    if not aligned:
        length = length.clamp(min=1)
    bin_size = length / bins
    samples = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp(min=0)
    most = int(samples.max().clamp(max=_MOST_SAMPLES + 1))
    if most > _MOST_SAMPLES:
        raise RuntimeError(
            f"roi_align: a box would take more than {_MOST_SAMPLES} samples along one side of a bin; clip boxes to the "
            "image or set sampling_ratio"
        )
    weights = begin.new_zeros((len(begin), bins, size))
    at_bin = start[:, None] + torch.arange(bins, device=begin.device) * bin_size[:, None]
    for i in range(most):
        position = at_bin + ((i + 0.5) * bin_size / samples)[:, None]
        inside = (position >= -1) & (position <= size) & (i < samples)[:, None]
        position = position.clamp(0, max(size - 1, 0))
        distance = (position[..., None] - torch.arange(size, device=begin.device)).abs()
        weights += (1 - distance).clamp(min=0) * inside[..., None]
    return weights / samples.clamp(min=1)[:, None, None]

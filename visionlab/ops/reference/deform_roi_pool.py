"""Deformable RoI pooling in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.reference import shifted_bins
from visionlab.ops.reference.box_values import check_boxes, check_samples
from visionlab.ops.reference.shifted_bins import Bins, Side


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
    most = _most_samples(input, boxes, offset, spatial_scale, sampling_ratio)
    return shifted_bins.pool(input, bins_of(input, boxes, offset, spatial_scale, sampling_ratio, gamma, most), mask)


def deform_roi_pool_backward(
    grad: Tensor,
    input: Tensor,
    boxes: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    input_grad: bool,
    offset_grad: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, offset and mask; one that is not wanted is empty."""
    most = _most_samples(input, boxes, offset, spatial_scale, sampling_ratio)
    bins = bins_of(input, boxes, offset, spatial_scale, sampling_ratio, gamma, most)
    empty = input.new_empty(0)
    of_input = shifted_bins.spread(grad, bins, input, mask) if input_grad else empty
    if not offset_grad:
        return of_input, empty.clone(), empty.clone()
    pooled, along_x, along_y = shifted_bins.move(grad, bins, input)
    factor = 1.0 if mask is None else mask
    of_offset = shifted_bins.offset_gradient(along_x * factor, along_y * factor, tuple(offset.shape))
    return of_input, of_offset, empty.clone() if mask is None else pooled.sum(1, keepdim=True)


def _sides(boxes: Tensor, spatial_scale: float, bins: tuple[int, int], sampling_ratio: int) -> list[tuple[Tensor, ...]]:
    """Return start, bin size and samples of each box along y and along x, each ``(K, 1, 1, 1)``."""
    result: list[tuple[Tensor, ...]] = []
    for first, count in ((2, bins[0]), (1, bins[1])):
        start = boxes[:, first].reshape(-1, 1, 1, 1) * spatial_scale - 0.5
        size = (boxes[:, first + 2].reshape(-1, 1, 1, 1) * spatial_scale - 0.5 - start) / count
        samples = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil().clamp(min=0)
        result.append((start, size, samples))
    return result


def _most_samples(
    input: Tensor, boxes: Tensor, offset: Tensor, spatial_scale: float, sampling_ratio: int
) -> tuple[int, int]:
    """Refuse boxes that cannot be pooled; return the largest number of samples along y and along x."""
    check_boxes("deform_roi_pool", boxes, input.shape[0])
    bins = (offset.shape[2], offset.shape[3])
    check_samples("deform_roi_pool", boxes, bins, spatial_scale, sampling_ratio)
    sides = _sides(boxes, spatial_scale, bins, sampling_ratio)
    rows, columns = (int(samples.max()) if len(boxes) else 0 for _, _, samples in sides)
    return rows, columns


def bins_of(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    most: int | tuple[int, int],
) -> Bins:
    """Return every bin; ``most`` is the largest number of samples of one, along y and along x."""
    height, width = offset.shape[2], offset.shape[3]
    most_rows, most_columns = (most, most) if isinstance(most, int) else most
    (y, bin_y, rows), (x, bin_x, columns) = _sides(boxes, spatial_scale, (height, width), sampling_ratio)
    per_x, per_y = gamma * (bin_x * width), gamma * (bin_y * height)
    offset_x, offset_y = shifted_bins.offset_of_bins(offset, input.shape[1], height, width)
    at_row = torch.arange(height, device=input.device).view(-1, 1)
    at_column = torch.arange(width, device=input.device)
    channels = torch.arange(input.shape[1], device=input.device).view(-1, 1, 1).expand(-1, height, width)
    return Bins(
        Side(
            y + at_row * bin_y, bin_y / rows.clamp(min=1), 0.5, per_y * offset_y, per_y, rows, most_rows, 1.0,
            input.shape[2],
        ),
        Side(
            x + at_column * bin_x, bin_x / columns.clamp(min=1), 0.5, per_x * offset_x, per_x, columns, most_columns,
            1.0, input.shape[3],
        ),
        boxes[:, 0].long(),
        channels,
        rows * columns,
    )  # fmt: skip

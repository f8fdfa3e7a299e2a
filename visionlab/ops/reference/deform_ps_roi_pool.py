"""Position-sensitive deformable RoI pooling in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.reference import shifted_bins
from visionlab.ops.reference.bins import round_half_away
from visionlab.ops.reference.box_values import check_boxes
from visionlab.ops.reference.shifted_bins import Bins, Side


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
    check_boxes("deform_ps_roi_pool", boxes, input.shape[0])
    settings = (spatial_scale, group_height, group_width, sample_per_part, gamma)
    return shifted_bins.pool(input, bins_of(input, boxes, offset, pooled_height, pooled_width, *settings), mask)


def deform_ps_roi_pool_backward(
    grad: Tensor,
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    spatial_scale: float,
    group_height: int,
    group_width: int,
    sample_per_part: int,
    gamma: float,
    input_grad: bool,
    offset_grad: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, offset and mask; one that is not wanted is empty."""
    check_boxes("deform_ps_roi_pool", boxes, input.shape[0])
    settings = (spatial_scale, group_height, group_width, sample_per_part, gamma)
    bins = bins_of(input, boxes, offset, grad.shape[2], grad.shape[3], *settings)
    empty = input.new_empty(0)
    of_input = shifted_bins.spread(grad, bins, input, mask) if input_grad else empty
    of_offset, of_mask = empty.clone(), empty.clone()
    if offset_grad and not (offset is None and mask is None):
        pooled, along_x, along_y = shifted_bins.move(grad, bins, input)
        factor = 1.0 if mask is None else mask
        if offset is not None:
            of_offset = shifted_bins.offset_gradient(along_x * factor, along_y * factor, tuple(offset.shape))
        if mask is not None:
            of_mask = pooled.sum(1, keepdim=True)
    return of_input, of_offset, of_mask


def _side(first: Tensor, last: Tensor, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """Return start and length of each box along one axis, ``(K, 1, 1, 1)``."""
    start = round_half_away(first) * spatial_scale - 0.5
    length = ((round_half_away(last) + 1) * spatial_scale - 0.5 - start).clamp(min=0.1)
    return start.reshape(-1, 1, 1, 1), length.reshape(-1, 1, 1, 1)


def bins_of(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    height: int,
    width: int,
    spatial_scale: float,
    group_height: int,
    group_width: int,
    sample_per_part: int,
    gamma: float,
) -> Bins:
    """Return every bin."""
    device = input.device
    outputs = input.shape[1] // (group_height * group_width)
    y, y_length = _side(boxes[:, 2], boxes[:, 4], spatial_scale)
    x, x_length = _side(boxes[:, 1], boxes[:, 3], spatial_scale)
    shift_x: Tensor | float = 0.0
    shift_y: Tensor | float = 0.0
    if offset is not None:
        offset_x, offset_y = shifted_bins.offset_of_bins(offset, outputs, height, width)
        shift_x, shift_y = gamma * x_length * offset_x, gamma * y_length * offset_y
    at_row, at_column = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
    samples = torch.full_like(y, sample_per_part)
    rows = Side(
        y + at_row * (y_length / height), y_length / height / sample_per_part, 0.0, shift_y, gamma * y_length,
        samples, sample_per_part, 0.5, input.shape[2],
    )  # fmt: skip
    columns = Side(
        x + at_column * (x_length / width), x_length / width / sample_per_part, 0.0, shift_x, gamma * x_length,
        samples, sample_per_part, 0.5, input.shape[3],
    )  # fmt: skip
    group = shifted_bins.part_of_bin(height, group_height, device)[:, None] * group_width
    group = group + shifted_bins.part_of_bin(width, group_width, device)
    channels = torch.arange(outputs, device=device).view(-1, 1, 1) * (group_height * group_width) + group
    return Bins(rows, columns, boxes[:, 0].long(), channels, rows.inside() * columns.inside())

"""RoIPool in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.formats import memory_format
from visionlab.ops.reference.bins import ROI_BLOCK, rounded_cells
from visionlab.ops.reference.box_values import check_boxes

LOWEST = torch.finfo(torch.float32).min


def roi_pool(
    input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """Pool each box, after checking the values of the boxes."""
    check_boxes("roi_pool", boxes, input.shape[0])
    parts = [formula(input, part, pooled_height, pooled_width, spatial_scale) for part in boxes.split(ROI_BLOCK)]
    output, argmax = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    format = memory_format(input)
    if not with_argmax:
        return output.to(memory_format=format), input.new_empty(0, dtype=torch.int32)
    return output.to(memory_format=format), argmax.to(memory_format=format)


def formula(
    input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float, with_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the maximum of each bin and where it lies: over the columns of each row, then over the rows."""
    _, _, height, width = input.shape
    rows = rounded_cells(boxes[:, 2], boxes[:, 4], spatial_scale, pooled_height, height, height, True)
    columns = rounded_cells(boxes[:, 1], boxes[:, 3], spatial_scale, pooled_width, width, width, True)
    lowest = torch.full((), LOWEST, dtype=input.dtype, device=input.device)
    maps = torch.where(input > lowest, input, lowest)[boxes[:, 0].long()]  # (K, C, H, W) without NaN
    by_bin, x = [], []
    for j in range(pooled_width):
        values, where = torch.where(columns[:, None, None, j], maps, lowest).max(-1)
        by_bin.append(values)
        x.append(_first(values[..., None], maps, columns[:, None, None, j], where, width))
    of_rows, x_of_rows = torch.stack(by_bin, -1), torch.stack(x, -1)  # (K, C, H, PW)
    outputs, cells = [], []
    for i in range(pooled_height):
        inside = rows[:, None, i, :, None]
        values, where = torch.where(inside, of_rows, lowest).max(-2)
        y = _first(values[..., None, :], of_rows, inside, where, height, dim=-2)
        outputs.append(values)
        cells.append(y * width + x_of_rows.gather(-2, y[..., None, :])[..., 0, :])
    output, argmax = torch.stack(outputs, -2), torch.stack(cells, -2)
    argmax = torch.where(output > lowest, argmax, -1)
    empty = ~(rows.any(-1)[:, None, :, None] & columns.any(-1)[:, None, None, :])
    output = torch.where(empty, torch.zeros_like(output), output)
    return output, torch.where(empty, -1, argmax).int() if with_argmax else input.new_empty(0, dtype=torch.int32)


def _first(best: Tensor, values: Tensor, inside: Tensor, where: Tensor, size: int, dim: int = -1) -> Tensor:
    """Return the first place along ``dim`` of each maximum; ``max`` itself may give any of several."""
    place = torch.arange(size, device=values.device)
    place = place if dim == -1 else place[:, None]
    return torch.where(inside & (values == best), place, size).amin(dim).minimum(where.clamp(max=size - 1))


def roi_pool_backward(
    grad: Tensor,
    argmax: Tensor,
    boxes: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    spatial_scale: float,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    """Return the gradient of the map: that of each bin, added to the place of its maximum."""
    check_boxes("roi_pool", boxes, batch)
    places = _places(argmax, boxes, channels, height * width)
    output = grad.new_zeros(batch * channels * height * width)
    output.index_add_(0, places.flatten(), torch.where(argmax >= 0, grad, 0).flatten())
    format = torch.channels_last if channels_last else torch.contiguous_format
    return output.view(batch, channels, height, width).to(memory_format=format)


def values_at(map: Tensor, argmax: Tensor, boxes: Tensor) -> Tensor:
    """Return what a map holds at the maximum of each bin, 0 for a bin that has none."""
    places = _places(argmax, boxes, map.shape[1], map.shape[2] * map.shape[3])
    found = map.reshape(-1)[places] if map.numel() else map.new_zeros(argmax.shape)
    return torch.where(argmax >= 0, found, 0)


def _places(argmax: Tensor, boxes: Tensor, channels: int, area: int) -> Tensor:
    """Return the index of each maximum in the whole contiguous map."""
    channel = torch.arange(channels, device=argmax.device)
    plane = boxes[:, 0].long()[:, None] * channels + channel
    return plane[..., None, None] * area + argmax.clamp(min=0)

"""Deformable convolution in plain PyTorch: gathered columns, then a matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.formats import memory_format


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Sample the map at every tap of every pixel and multiply by the weights."""
    corners = _Corners(input, offset, weight, stride, padding, dilation)
    samples = _dot(corners.values, corners.weights)
    if mask is not None:
        samples = samples * mask.reshape(corners.shape)
    columns = samples.reshape(input.shape[0], corners.groups, -1, corners.pixels)
    output = (corners.kernel @ columns).reshape(input.shape[0], weight.shape[0], *offset.shape[2:])
    output = output if bias is None else output + bias[:, None, None]
    return output.to(memory_format=memory_format(input))


def deform_conv2d_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    for_input: bool,
    for_offset: bool,
    for_weight: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, offset, weight and mask; those not asked for are empty."""
    corners = _Corners(input, offset, weight, stride, padding, dilation)
    factor = 1 if mask is None else mask.reshape(corners.shape)
    grads = grad.reshape(input.shape[0], corners.groups, -1, corners.pixels)
    of_samples = (corners.kernel.mT @ grads).reshape(corners.values[0].shape)
    of_input, of_offset, of_weight, of_mask = (input.new_empty(0) for _ in range(4))
    if for_input:
        of_input = torch.zeros_like(corners.map)
        for cell, share in zip(corners.cells, corners.weights, strict=True):
            of_input.scatter_add_(3, cell.flatten(3), (of_samples * share * factor).flatten(3))
        of_input = of_input.reshape(input.shape).to(memory_format=memory_format(input))
    if for_offset:
        dots = [(of_samples * value).sum(2, keepdim=True) for value in corners.values]
        slopes = torch.cat(corners.slopes(dots), 2) * (factor if mask is None else mask.reshape(corners.shape))
        of_offset = slopes.transpose(2, 3).reshape(offset.shape).to(memory_format=memory_format(offset))
        if mask is not None:
            of_mask = _dot(dots, corners.weights).reshape(mask.shape).to(memory_format=memory_format(mask))
    if for_weight:
        columns = _dot(corners.values, corners.weights) * factor
        columns = columns.reshape(input.shape[0], corners.groups, -1, corners.pixels)
        of_weight = (grads @ columns.mT).sum(0).reshape(weight.shape).to(memory_format=memory_format(weight))
    return of_input, of_offset, of_weight, of_mask


def _dot(values: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Return the sum over the four corners."""
    return (values[0] * weights[0] + values[1] * weights[1]) + (values[2] * weights[2] + values[3] * weights[3])


class _Corners:
    """The four cells around every sample: upper left, upper right, lower left, lower right.

    All are ``(N, offset groups, channels of the group or 1, taps, pixels)``.
    """

    def __init__(
        self, input: Tensor, offset: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
    ) -> None:
        batch, channels, height, width = input.shape
        taps = weight.shape[2] * weight.shape[3]
        self.groups = channels // weight.shape[1] if weight.shape[1] else 1
        self.kernel = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1] * taps)
        self.pixels = offset.shape[2] * offset.shape[3]
        offset_groups = offset.shape[1] // (2 * taps)
        self.shape = (batch, offset_groups, 1, taps, self.pixels)
        self.map = input.reshape(batch, offset_groups, channels // offset_groups, height * width)

        moved = offset.reshape(batch, offset_groups, taps, 2, self.pixels)
        rows, columns = (
            torch.arange(weight.shape[dim], device=offset.device)[:, None] * dilation[dim - 2]
            + torch.arange(offset.shape[dim], device=offset.device) * stride[dim - 2]
            - padding[dim - 2]
            for dim in (2, 3)
        )
        rows = rows[:, None, :, None].expand(-1, weight.shape[3], -1, offset.shape[3]).reshape(taps, self.pixels)
        columns = columns[None, :, None].expand(weight.shape[2], -1, offset.shape[2], -1).reshape(taps, self.pixels)
        y = (moved[:, :, :, 0] + rows)[:, :, None]
        x = (moved[:, :, :, 1] + columns)[:, :, None]

        self.inside = (y >= -1) & (y < height) & (x >= -1) & (x < width)
        y, x = torch.where(self.inside, y, 0), torch.where(self.inside, x, 0)
        top, left = y.floor(), x.floor()
        self.down, self.right = y - top, x - left
        row, column = top.long(), left.long()
        parts = [(row + i, column + j) for i in (0, 1) for j in (0, 1)]
        exists = [self.inside & (r >= 0) & (r < height) & (c >= 0) & (c < width) for r, c in parts]
        each = (-1, -1, self.map.shape[2], -1, -1)
        self.cells = [
            torch.where(there, r * width + c, 0).expand(each) for (r, c), there in zip(parts, exists, strict=True)
        ]
        self.values = [
            torch.where(there, self.map.gather(3, cell.flatten(3)).reshape(cell.shape), 0)
            for cell, there in zip(self.cells, exists, strict=True)
        ]
        shares = [
            (1 - self.down) * (1 - self.right),
            (1 - self.down) * self.right,
            self.down * (1 - self.right),
            self.down * self.right,
        ]
        self.weights = [torch.where(there, share, 0) for share, there in zip(shares, exists, strict=True)]

    def slopes(self, corners: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the derivatives by row and by column of the sum over the corners; 0 where a sample is outside."""
        down = (1 - self.right) * (corners[2] - corners[0]) + self.right * (corners[3] - corners[1])
        right = (1 - self.down) * (corners[1] - corners[0]) + self.down * (corners[3] - corners[2])
        return torch.where(self.inside, down, 0), torch.where(self.inside, right, 0)

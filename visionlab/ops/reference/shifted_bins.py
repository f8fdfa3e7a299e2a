"""Pooling in bins that each move by an offset of their own, in plain PyTorch: what the deformable RoI pools share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from visionlab.ops.formats import memory_format


class Samples(NamedTuple):
    """The cells that samples lie between along one axis; weights and slope are 0 where a sample counts for nothing."""

    low: Tensor
    high: Tensor
    low_weight: Tensor
    high_weight: Tensor
    slope: Tensor  # of high_weight, and of -low_weight


class Side(NamedTuple):
    """One side of all bins: sample s lies at ``origin + (s + phase) * step + shift``.

    All tensors broadcast to ``(K, D, PH, PW)`` for D output channels.
    """

    origin: Tensor
    step: Tensor
    phase: float
    shift: Tensor | float
    per_offset: Tensor  # how far a bin moves per unit of its offset
    samples: Tensor  # how many each box has
    most: int  # the largest of them
    margin: float  # how far outside the map a sample still counts
    size: int  # of the map

    def _position(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        position = self.origin + (index + self.phase) * self.step + self.shift
        inside = (position >= -self.margin) & (position <= self.size - 1 + self.margin) & (index < self.samples)
        return position, inside

    def inside(self) -> Tensor:
        """Return how many samples of each bin lie on the map."""
        return sum(self._position(i)[1].to(self.origin.dtype) for i in range(self.most))  # type: ignore[return-value]

    def sample(self, index: int | Tensor) -> Samples:
        """Return one sample of each bin."""
        position, inside = self._position(index)
        at = torch.where(inside, position, 0.0).clamp(0, self.size - 1)
        low = at.floor()
        high = (low + 1).clamp(max=self.size - 1)
        on = inside.to(at.dtype)
        slope = on * (position >= 0) * (low < self.size - 1)
        return Samples(low.long(), high.long(), on * (1 - (at - low)), on * (at - low), slope)


class Bins(NamedTuple):
    """All bins of a call."""

    rows: Side
    columns: Side
    images: Tensor  # (K,)
    channels: Tensor  # (D, PH, PW), of the input
    counted: Tensor  # samples that the mean is over

    def samples(self) -> Iterator[tuple[Samples, Samples]]:
        """Yield every pair of a sample along y and one along x."""
        for y in range(self.rows.most):
            row = self.rows.sample(y)
            for x in range(self.columns.most):
                yield row, self.columns.sample(x)

    def cells(self, shape: tuple[int, ...], row: Tensor, column: Tensor) -> Tensor:
        """Return where cells of a contiguous ``(N, C, H, W)`` input lie in memory."""
        planes = self.images.view(-1, 1, 1, 1) * shape[1] + self.channels
        return (planes * shape[2] + row) * shape[3] + column


def corners(row: Samples, column: Samples) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Yield row, column, weight, and how the weight changes along x and along y, for the four cells of a sample."""
    for at_y, y_weight, y_slope in ((row.low, row.low_weight, -row.slope), (row.high, row.high_weight, row.slope)):
        for at_x, x_weight, x_slope in (
            (column.low, column.low_weight, -column.slope),
            (column.high, column.high_weight, column.slope),
        ):
            yield at_y, at_x, y_weight * x_weight, y_weight * x_slope, y_slope * x_weight


def pool(input: Tensor, bins: Bins, mask: Tensor | None) -> Tensor:
    """Return ``(K, D, PH, PW)``: the mean of the samples of each bin, times its mask."""
    output = input.new_zeros(())
    for row, column in bins.samples():
        output = output + value(input, bins, row, column)
    return mean(output, bins, mask).to(memory_format=memory_format(input)).clone()


def value(input: Tensor, bins: Bins, row: Samples, column: Samples) -> Tensor:
    """Return the interpolated value of one sample of each bin."""
    values, shape = input.reshape(-1), tuple(input.shape)
    return sum(weight * values[bins.cells(shape, y, x)] for y, x, weight, _, _ in corners(row, column))  # type: ignore[return-value]


def mean(total: Tensor, bins: Bins, mask: Tensor | None) -> Tensor:
    """Return what is pooled, from the sum of the samples."""
    output = (total / bins.counted.clamp(min=1)).expand(bins.images.shape[0], *bins.channels.shape)
    return output if mask is None else output * mask


def spread(grad: Tensor, bins: Bins, input: Tensor, mask: Tensor | None) -> Tensor:
    """Return the gradient of the input."""
    output = input.new_zeros(input.numel())
    grad = (grad if mask is None else grad * mask) / bins.counted.clamp(min=1)
    for row, column in bins.samples():
        for y, x, weight, _, _ in corners(row, column):
            cells = bins.cells(tuple(input.shape), y, x).expand(grad.shape)
            output.index_add_(0, cells.flatten(), (weight * grad).flatten())
    return output.view(input.shape).to(memory_format=memory_format(input))


def move(grad: Tensor, bins: Bins, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient times each pooled value, and times its change along x and along y per unit of offset."""
    values = input.reshape(-1)
    sums = [torch.zeros_like(grad) for _ in range(3)]
    for row, column in bins.samples():
        for y, x, *weights in corners(row, column):
            at_cell = grad * values[bins.cells(tuple(input.shape), y, x)]
            for total, weight in zip(sums, weights, strict=True):
                total += weight * at_cell
    pooled, along_x, along_y = (total / bins.counted.clamp(min=1) for total in sums)
    return pooled, along_x * bins.columns.per_offset, along_y * bins.rows.per_offset


def part_of_bin(bins: int, parts: int, device: torch.device) -> Tensor:
    """Return the part, or the channel group, that each bin along one side takes its offset from."""
    return torch.arange(bins, device=device) * parts // bins


def offset_of_bins(offset: Tensor, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the horizontal and the vertical offset of each bin, ``(K, channels, height, width)`` or one channel."""
    count, planes, part_height, part_width = offset.shape
    rows = part_of_bin(height, part_height, offset.device)
    columns = part_of_bin(width, part_width, offset.device)
    of_bins = offset.reshape(count, planes // 2, 2, part_height, part_width)[..., rows[:, None], columns]
    if planes > 2:
        of_bins = of_bins.repeat_interleave(channels // (planes // 2), 1)
    return of_bins[:, :, 0], of_bins[:, :, 1]


def offset_gradient(along_x: Tensor, along_y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the gradient of offsets of that shape: sums over the channels of a class and the bins of a part."""
    count, planes, part_height, part_width = shape
    height, width = along_x.shape[2:]
    rows, columns = (part_of_bin(*sizes, along_x.device) for sizes in ((height, part_height), (width, part_width)))
    parts = (rows[:, None] * part_width + columns).flatten()
    of_class = torch.stack([along_x, along_y], 2).reshape(count, planes // 2, -1, 2, height * width).sum(2)
    output = of_class.new_zeros((count, planes // 2, 2, part_height * part_width))
    return output.index_add_(3, parts, of_class).reshape(shape)

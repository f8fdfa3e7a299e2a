"""Pooling in moving bins as scalar loops in float64, written from the definition: values and every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Bin:
    """Where one output value comes from: its samples, and how they move with its offsets."""

    image: int
    channel: int  # of the input
    samples: list[tuple[float, float]]  # y, x
    margin: float  # how far outside the map a sample still has the value of the edge
    mean_of_inside: bool
    per_x: float
    per_y: float
    offset: tuple[int, int, int, int] | None  # of the horizontal one; the vertical one is the next plane


def line(position: float, margin: float, size: int) -> tuple[list[tuple[int, float]], float] | None:
    """The cells around a position, each with its weight, and how fast the upper one gains; None outside."""
    if not -margin <= position <= size - 1 + margin:
        return None
    if position < 0:
        return [(0, 1.0)], 0.0
    low = math.floor(position)
    if low >= size - 1:
        return [(size - 1, 1.0)], 0.0
    return [(low, 1 - (position - low)), (low + 1, position - low)], 1.0


def change(cells: list[tuple[int, float]], slope: float) -> list[tuple[int, float]]:
    return [(cells[0][0], -1.0), (cells[1][0], 1.0)] if slope else []


def slow(
    input: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    shape: tuple[int, ...],
    bin_at: Callable[[int, int, int, int], Bin],
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the answer and the gradients of input, offset and mask."""
    map, upstream = input.double().tolist(), grad.double().tolist()  # lists: an element of a tensor costs microseconds
    factors = None if mask is None else mask.double().tolist()
    output = torch.zeros(shape, dtype=torch.float64)
    of_input = torch.zeros(input.shape, dtype=torch.float64).tolist()
    of_offset = None if offset is None else torch.zeros(offset.shape, dtype=torch.float64)
    of_mask = None if mask is None else torch.zeros(mask.shape, dtype=torch.float64)
    for k, c, i, j in indices(shape):
        bin = bin_at(k, c, i, j)
        plane, of_plane = map[bin.image][bin.channel], of_input[bin.image][bin.channel]
        inside = []
        for y, x in bin.samples:
            row, column = line(y, bin.margin, input.shape[2]), line(x, bin.margin, input.shape[3])
            if row is not None and column is not None:
                inside.append((row, column))
        count = max(len(inside) if bin.mean_of_inside else len(bin.samples), 1)
        factor = 1.0 if factors is None else factors[k][0][i][j]
        gradient = upstream[k][c][i][j]
        value = along_x = along_y = 0.0
        for (rows, y_slope), (columns, x_slope) in inside:
            for y, y_weight in rows:
                for x, x_weight in columns:
                    value += y_weight * x_weight * plane[y][x] / count
                    of_plane[y][x] += gradient * factor * y_weight * x_weight / count
                for x, sign in change(columns, x_slope):
                    along_x += y_weight * sign * plane[y][x] / count
            for y, sign in change(rows, y_slope):
                for x, x_weight in columns:
                    along_y += sign * x_weight * plane[y][x] / count
        output[k, c, i, j] = value * factor
        if of_mask is not None:
            of_mask[k, 0, i, j] += gradient * value
        if of_offset is not None and bin.offset is not None:
            box, part, row_part, column_part = bin.offset
            of_offset[box, part, row_part, column_part] += gradient * factor * along_x * bin.per_x
            of_offset[box, part + 1, row_part, column_part] += gradient * factor * along_y * bin.per_y
    return output, torch.tensor(of_input, dtype=torch.float64).reshape(input.shape), of_offset, of_mask


def indices(shape: tuple[int, ...]) -> Iterable[tuple[int, int, int, int]]:
    for k in range(shape[0]):
        for c in range(shape[1]):
            for i in range(shape[2]):
                for j in range(shape[3]):
                    yield k, c, i, j


def make_boxes(count: int, dtype: torch.dtype = torch.float32, seed: int = 0, size: float = 12.0) -> Tensor:
    """Boxes of two images inside, across and outside the border, of all sizes, some with their sides swapped."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 2, (count, 1), generator=generator)
    centers = torch.rand(count, 2, generator=generator) * size * 1.2 - size * 0.1
    halves = torch.rand(count, 2, generator=generator) ** 2 * size * 0.6 - 0.02 * size
    return torch.cat([images, centers - halves, centers + halves], 1).to(dtype)

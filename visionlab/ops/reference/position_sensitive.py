"""Pooling in which each bin reads channels of its own, from weights of rows and of columns."""

from __future__ import annotations

import torch
from torch import Tensor


def position_sensitive_pool(input: Tensor, boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return bin (i, j) of class c: channel ``(c * PH + i) * PW + j`` weighted by row i and column j of the weights."""
    (_, bins_y, height), (_, bins_x, width) = rows.shape, columns.shape
    maps = input.reshape(input.shape[0], -1, bins_y, bins_x, height, width)[boxes[:, 0].long()]
    return torch.einsum("kih,kcijhw,kjw->kcij", rows, maps, columns)


def position_sensitive_spread(
    grad: Tensor, boxes: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int, int, int]
) -> Tensor:
    """Return the gradient of the map of the given shape, the transpose of :func:`position_sensitive_pool`."""
    output = grad.new_zeros(shape)
    images = boxes[:, 0].long()
    for image in range(shape[0]):
        part = images == image
        summed = torch.einsum("kih,kcij,kjw->cijhw", rows[part], grad[part], columns[part])
        output[image] = summed.reshape(shape[1:])
    return output

"""What pooling boxes in plain PyTorch has in common."""

from __future__ import annotations

import torch
from torch import Tensor

ROI_BLOCK = 16  # RoIs pooled at once; bounds memory at block * the map of an image
_MOST_SAMPLES = 1 << 16


def check_boxes(op: str, boxes: Tensor, batch: int) -> None:
    """Refuse boxes that are not finite or that name no image."""
    if not boxes.isfinite().all():
        box = int((~boxes.isfinite()).any(1).nonzero()[0])
        raise RuntimeError(f"{op}: boxes must be finite, got {boxes[box].tolist()} in box {box}")
    outside = ((boxes[:, 0] < 0) | (boxes[:, 0] >= batch)).nonzero()
    if len(outside):
        box = int(outside[0])
        raise RuntimeError(
            f"{op}: the image index of a box must be in [0, {batch}), got {float(boxes[box, 0]):g} in box {box}"
        )


def rounded_bins(
    begin: Tensor, end: Tensor, scale: float, bins: int, limit: int, inclusive: bool
) -> tuple[Tensor, Tensor]:
    """Return ``(K, bins)`` the first cell of each bin and the first one past it, for sides rounded to whole cells.

    Args:
        begin: ``(K,)`` first corner of the side of each box.
        end: ``(K,)`` its last corner.
        scale: cells per unit of the corners.
        bins: how many bins the side is cut into.
        limit: cells from here on are in no bin.
        inclusive: whether the last corner is a cell of the box.
    """
    most = 2.0**30
    start, last = (_round(corner * scale).clamp(-most, most).long() for corner in (begin, end))
    length = (last - start + int(inclusive)).clamp(min=1)
    bin_size = length.to(begin.dtype) / bins
    index = torch.arange(bins, device=begin.device, dtype=begin.dtype)
    first = (start[:, None] + (index * bin_size[:, None]).floor().long()).clamp(0, limit)
    past = (start[:, None] + ((index + 1) * bin_size[:, None]).ceil().long()).clamp(0, limit)
    return first, past


def rounded_cells(
    begin: Tensor, end: Tensor, scale: float, bins: int, size: int, limit: int, inclusive: bool
) -> Tensor:
    """Return ``(K, bins, size)`` bool: whether a cell of a map is one of a bin of :func:`rounded_bins`."""
    first, past = rounded_bins(begin, end, scale, bins, limit, inclusive)
    cell = torch.arange(size, device=begin.device)
    return (cell >= first[..., None]) & (cell < past[..., None])


def _round(values: Tensor) -> Tensor:
    """Return the nearest whole numbers, halves away from zero."""
    whole = values.trunc()
    return torch.where((values - whole).abs() >= 0.5, whole + values.sign(), whole)


def linear_weights(
    op: str, begin: Tensor, end: Tensor, scale: float, bins: int, size: int, sampling_ratio: int
) -> Tensor:
    """Return ``(K, bins, size)``: how much a cell counts in the mean of a bin's linearly interpolated samples.

    Args:
        op: the operator, for the message.
        begin: ``(K,)`` first corner of the side of each box.
        end: ``(K,)`` its last corner.
        scale: cells per unit of the corners.
        bins: how many bins the side is cut into.
        size: cells of the map along this axis.
        sampling_ratio: samples of a bin; 0 or less takes one per cell that it covers.
    """
    start = begin * scale - 0.5
    bin_size = (end * scale - 0.5 - start) / bins
    samples = torch.full_like(start, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp(min=0)
    most = sampling_ratio
    if sampling_ratio <= 0:
        most = int(samples.max().clamp(max=_MOST_SAMPLES + 1)) if len(samples) else 0
    if most > _MOST_SAMPLES:
        box = int((samples > _MOST_SAMPLES).nonzero()[0]) if sampling_ratio <= 0 else 0
        raise RuntimeError(
            f"{op}: box {box} would take more than {_MOST_SAMPLES} samples along one side of a bin; clip boxes to the "
            "image or set sampling_ratio"
        )
    cells = torch.arange(size, device=begin.device)
    at_bin = start[:, None] + torch.arange(bins, device=begin.device) * bin_size[:, None]
    weights = begin.new_zeros((begin.shape[0], bins, size))
    for i in range(most):
        position = at_bin + ((i + 0.5) * bin_size / samples)[:, None]
        inside = (position >= -1) & (position <= size) & (i < samples)[:, None]
        position = torch.where(inside, position, 0).clamp(0, max(size - 1, 0))
        distance = (position[..., None] - cells).abs()
        weights = weights + (1 - distance).clamp(min=0) * inside[..., None]
    return weights / samples.clamp(min=1)[:, None, None]


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

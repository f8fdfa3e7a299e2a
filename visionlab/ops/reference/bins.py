"""Bins along one axis of a map: which cells are theirs, and how much each cell counts."""

from __future__ import annotations

import torch
from torch import Tensor

ROI_BLOCK = 16  # RoIs pooled at once; bounds memory at block * the map of an image


def round_half_away(values: Tensor) -> Tensor:
    """Return the nearest whole numbers, halves away from zero; ``torch.round`` takes the even one."""
    whole = values.trunc()
    return torch.where((values - whole).abs() >= 0.5, whole + values.sign(), whole)


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
    start, last = (round_half_away(corner * scale).clamp(-most, most).long() for corner in (begin, end))
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


def linear_weights(
    begin: Tensor, end: Tensor, scale: float, bins: int, size: int, sampling_ratio: int, aligned: bool = True
) -> Tensor:
    """Return ``(K, bins, size)``: how much a cell counts in the mean of a bin's linearly interpolated samples.

    Args:
        begin: ``(K,)`` first corner of the side of each box.
        end: ``(K,)`` its last corner.
        scale: cells per unit of the corners.
        bins: how many bins the side is cut into.
        size: cells of the map along this axis.
        sampling_ratio: samples of a bin; 0 or less takes one per cell that it covers.
        aligned: whether cells have their centers at half-integers; otherwise at integers, and a side is at least 1.
    """
    shift = 0.5 if aligned else 0.0
    start = begin * scale - shift
    length = end * scale - shift - start
    bin_size = (length if aligned else length.clamp(min=1)) / bins
    samples = torch.full_like(start, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp(min=0)
    most = sampling_ratio
    if sampling_ratio <= 0:
        most = int(samples.max()) if len(samples) else 0
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

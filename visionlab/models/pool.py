"""What every kind of RoI pooling shares: its form, and the level of a pyramid that each RoI is pooled from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from visionlab.checks import check_above, check_at_least
from visionlab.ops.multi_scale_roi_align import assign_levels
from visionlab.settings import Settings

CANONICAL_LEVEL = 4  # of stride 16


@dataclass(frozen=True, kw_only=True)
class PoolSettings(Settings):
    """What a RoI is pooled to, and from where.

    Args:
        output_size: bins on each side of a pooled RoI.
        canonical_size: a RoI of this side in pixels is pooled from stride 16, of twice the side from stride 32.
    """

    output_size: int = 7
    canonical_size: float = 224.0

    def __post_init__(self) -> None:
        check_at_least(1, output_size=self.output_size)
        check_above(0, canonical_size=self.canonical_size)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """Where a bin looks.

    Args:
        sampling_ratio: samples on each side of a bin; 0 adapts them to the RoI.
    """

    sampling_ratio: int = 2

    def __post_init__(self) -> None:
        check_at_least(0, sampling_ratio=self.sampling_ratio)


class Pool(nn.Module, ABC):
    """Pools RoIs from a pyramid of features, or from a single level.

    A row of ``POOLS`` is called with ``channels`` and ``strides``, and with its settings.

    Args:
        channels: channels of every level.
        strides: stride of each level in pixels, finest first, each twice the one before.
        settings: what a RoI is pooled to.

    Attributes:
        channels: channels of a pooled RoI.
    """

    def __init__(self, channels: int, strides: list[int], settings: PoolSettings) -> None:
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"strides: expected each to be twice the one before, got {strides}")
        self.channels = channels
        self.scales = [1 / stride for stride in strides]
        self.output_size, self.canonical_size = settings.output_size, settings.canonical_size

    @abstractmethod
    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Pool each RoI from its level.

        Args:
            features: one ``(N, C, H, W)`` map per stride, finest first.
            rois: ``(K, 5)``: index of the image in the batch, then the box in pixels.

        Returns:
            ``(K, channels, output_size, output_size)``.
        """

    def levels_of(self, rois: Tensor) -> Tensor:
        """Return the level of the pyramid that each of ``(K, 5)`` RoIs is pooled from, ``(K,)`` int64."""
        return assign_levels(rois[:, 1:], self.scales, self.canonical_size, CANONICAL_LEVEL)

    def by_level(
        self, pool: Callable[..., Tensor], features: Sequence[Tensor], rois: Tensor, *of_rois: Tensor | None
    ) -> Tensor:
        """Pool each RoI from its level by an operator that knows one level.

        Args:
            pool: called with the map of a level, its RoIs, its scale, and the rows of ``of_rois`` that are theirs.
            features: one ``(N, C, H, W)`` map per stride, finest first.
            rois: ``(K, 5)``.
            of_rois: more that each RoI has, ``(K, ...)``; None is passed on.

        Returns:
            What ``pool`` returns, ``(K, ...)``, in the order of ``rois``.
        """
        if len(self.scales) == 1:
            (feature,) = features
            return pool(feature, rois, self.scales[0], *of_rois)
        levels = self.levels_of(rois)
        if torch.compiler.is_compiling() and not self.training:  # no shape of a graph may depend on values
            every = (pool(feature, rois, scale, *of_rois) for feature, scale in zip(features, self.scales, strict=True))
            return torch.stack(list(every), dim=1)[torch.arange(rois.shape[0], device=rois.device), levels]
        rows = [torch.where(levels == level)[0] for level in range(len(self.scales))]
        pooled = [
            pool(feature, rois[own], scale, *(None if each is None else each[own] for each in of_rois))
            for feature, own, scale in zip(features, rows, self.scales, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(rows).argsort()]


class PositionSensitivePool(Pool):
    """Pools each of k * k bins from maps of its own, k being ``output_size``.

    One that says ``bins_move`` may be called with two more parts, by a head that computes score maps from another map:
    ``source_channels``, the channels of that map, and ``sets``, into how many groups of neighbors the pooled channels
    fall, one for each class.

    Source: Dai et al., R-FCN, 2016, arXiv:1605.06409.

    Args:
        channels: channels of every level, k * k times those of a pooled RoI; channel ``(c * k + i) * k + j`` belongs to
            bin (i, j) of pooled channel c.
        strides: stride of each level in pixels, finest first, each twice the one before.
        settings: what a RoI is pooled to.

    Raises:
        ValueError: k * k does not divide the channels.
    """

    bins_move: ClassVar[bool] = False

    def __init__(self, channels: int, strides: list[int], settings: PoolSettings) -> None:
        bins = settings.output_size**2
        if channels % bins:
            raise ValueError(
                f"output_size: expected k * k to divide the {channels} channels to pool from, as each bin has its own,"
                f" got {settings.output_size}"
            )
        super().__init__(channels // bins, strides, settings)

    @abstractmethod
    def forward(self, features: list[Tensor], rois: Tensor, moves: Sequence[Tensor] = ()) -> Tensor:
        """Pool each RoI from its level.

        Args:
            features: one ``(N, C, H, W)`` map per stride, finest first.
            rois: ``(K, 5)``: index of the image in the batch, then the box in pixels.
            moves: of ``moves_of`` the map that ``features`` were computed from; by default of ``features``.

        Returns:
            ``(K, channels, output_size, output_size)``.
        """

    def moves_of(self, sources: list[Tensor]) -> list[Tensor]:
        """Compute what says where bins move: once for a batch, however many RoIs there are.

        Args:
            sources: one ``(N, source_channels, H, W)`` map per stride, finest first.

        Returns:
            One map per stride; none where bins stay.
        """
        return []

    def rows_of_sets(self) -> list[str]:
        """Return the names of the pool's tensors whose first dimension is one block of rows for each set."""
        return []

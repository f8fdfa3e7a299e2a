"""RoIs of all sizes from a pyramid of features: each is pooled from the level that fits its size.

A kind of pooling is a class and a row in ``POOLS``, from which heads choose: ``head: {pool: {name: roi_align}}``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from visionlab.checks import check_above, check_at_least
from visionlab.choices import OneOf
from visionlab.ops.multi_scale_roi_align import assign_levels, multi_scale_roi_align
from visionlab.ops.roi_pool import roi_pool
from visionlab.settings import Settings, flat_settings

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


class Pool(nn.Module, ABC):
    """Pools RoIs from a pyramid of features.

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


class RoIAlignPool(Pool):
    """Averages samples between pixels.

    Source: He et al., Mask R-CNN, 2017, arXiv:1703.06870; the defaults are torchvision's.

    Args:
        channels: channels of every level.
        strides: stride of each level in pixels, finest first, each twice the one before.
        sampling_ratio: samples on each side of a bin; 0 adapts them to the RoI.
        aligned: shift the RoIs by half a location, as pixel centers ask for (detectron2 does, torchvision does not).
    """

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        *,
        settings: PoolSettings = PoolSettings(),
        sampling_ratio: int = 2,
        aligned: bool = False,
    ) -> None:
        check_at_least(0, sampling_ratio=sampling_ratio)
        super().__init__(channels, strides, settings)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Pool each RoI; see ``Pool.forward``."""
        return multi_scale_roi_align(
            features,
            rois,
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            self.canonical_size,
            CANONICAL_LEVEL,
        )


class RoIMaxPool(Pool):
    """Takes the greatest value of the whole pixels that a bin touches.

    Source: Girshick, Fast R-CNN, 2015, arXiv:1504.08083.

    Args:
        channels: channels of every level.
        strides: stride of each level in pixels, finest first, each twice the one before.
    """

    @flat_settings
    def __init__(self, channels: int, strides: list[int], *, settings: PoolSettings = PoolSettings()) -> None:
        super().__init__(channels, strides, settings)

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Pool each RoI; see ``Pool.forward``."""
        levels = self.levels_of(rois)
        rows = [torch.where(levels == level)[0] for level in range(len(self.scales))]
        pooled = [
            roi_pool(feature, rois[own], self.output_size, scale)
            for feature, own, scale in zip(features, rows, self.scales, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(rows).argsort()]


POOLS: dict[str, type[Pool]] = {"roi_align": RoIAlignPool, "roi_pool": RoIMaxPool}
POOL = OneOf(POOLS)

"""RoIs of all sizes from a pyramid of features: each is pooled from the level that fits its size.

A kind of pooling is a class and a row in ``POOLS``, from which heads choose: ``head: {pool: {name: roi_align}}``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from visionlab.choices import OneOf
from visionlab.models.deformable_pools import DeformablePSRoIPool, DeformableRoIPool
from visionlab.models.pool import CANONICAL_LEVEL, Pool, PoolSettings, PositionSensitivePool, SamplingSettings
from visionlab.ops.multi_scale_roi_align import multi_scale_roi_align
from visionlab.ops.ps_roi_align import ps_roi_align
from visionlab.ops.ps_roi_pool import ps_roi_pool
from visionlab.ops.roi_pool import roi_pool
from visionlab.settings import flat_settings


class RoIAlignPool(Pool):
    """Averages samples between pixels.

    Source: He et al., Mask R-CNN, 2017, arXiv:1703.06870; the defaults are torchvision's.

    Args:
        channels: channels of every level.
        strides: stride of each level in pixels, finest first, each twice the one before.
        aligned: shift the RoIs by half a location, as pixel centers ask for (detectron2 does, torchvision does not).
    """

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        *,
        settings: PoolSettings = PoolSettings(),
        sampling: SamplingSettings = SamplingSettings(),
        aligned: bool = False,
    ) -> None:
        super().__init__(channels, strides, settings)
        self.sampling_ratio, self.aligned = sampling.sampling_ratio, aligned

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
        return self.by_level(self._pool, features, rois)

    def _pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        return roi_pool(feature, rois, self.output_size, scale)


class PSRoIMeanPool(PositionSensitivePool):
    """Averages the whole pixels that a bin touches, each bin on maps of its own.

    Source: Dai et al., R-FCN, 2016, arXiv:1605.06409.

    Args:
        channels: channels of every level, ``output_size`` squared times those of a pooled RoI.
        strides: stride of each level in pixels, finest first, each twice the one before.
    """

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        *,
        settings: PoolSettings = PoolSettings(),
    ) -> None:
        super().__init__(channels, strides, settings)

    def forward(self, features: list[Tensor], rois: Tensor, moves: Sequence[Tensor] = ()) -> Tensor:
        """Pool each RoI; see ``PositionSensitivePool.forward``."""
        return self.by_level(self._pool, features, rois)

    def _pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        return ps_roi_pool(feature, rois, self.output_size, scale)


class PSRoIAlignPool(PositionSensitivePool):
    """Averages samples between pixels, each bin on maps of its own.

    Source: Li et al., Light-Head R-CNN, 2017, arXiv:1711.07264.

    Args:
        channels: channels of every level, ``output_size`` squared times those of a pooled RoI.
        strides: stride of each level in pixels, finest first, each twice the one before.
    """

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        *,
        settings: PoolSettings = PoolSettings(),
        sampling: SamplingSettings = SamplingSettings(),
    ) -> None:
        super().__init__(channels, strides, settings)
        self.sampling_ratio = sampling.sampling_ratio

    def forward(self, features: list[Tensor], rois: Tensor, moves: Sequence[Tensor] = ()) -> Tensor:
        """Pool each RoI; see ``PositionSensitivePool.forward``."""
        return self.by_level(self._pool, features, rois)

    def _pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        return ps_roi_align(feature, rois, self.output_size, scale, self.sampling_ratio)


POOLS: dict[str, type[Pool]] = {
    "roi_align": RoIAlignPool,
    "roi_pool": RoIMaxPool,
    "ps_roi_pool": PSRoIMeanPool,
    "ps_roi_align": PSRoIAlignPool,
    "deform_roi_pool": DeformableRoIPool,
    "deform_ps_roi_pool": DeformablePSRoIPool,
}
POOL = OneOf(POOLS)

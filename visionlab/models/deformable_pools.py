"""RoI pools whose bins move: each has a branch that says by how much, and that starts at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from visionlab.checks import check_above, check_at_least
from visionlab.models.pool import Pool, PoolSettings, PositionSensitivePool, SamplingSettings
from visionlab.ops.deform_ps_roi_pool import deform_ps_roi_pool
from visionlab.ops.deform_roi_pool import deform_roi_pool
from visionlab.settings import Settings, flat_settings


@dataclass(frozen=True, kw_only=True)
class MoveSettings(Settings):
    """How bins move.

    Args:
        gamma: how far an offset of 1 moves a bin, as a share of the RoI.
        modulated: whether bins are also weighed, each by a factor in (0, 2) that starts at 1 (Zhu et al. 2018,
            arXiv:1811.11168).
    """

    gamma: float = 0.1
    modulated: bool = False

    def __post_init__(self) -> None:
        check_above(0, gamma=self.gamma)


class DeformableRoIPool(Pool):
    """Averages samples between pixels, in bins that move as what the RoI looks like tells them.

    Pooled without offsets, a RoI goes through fully connected layers that give the offsets of its bins.

    Source: Dai et al., Deformable Convolutional Networks, 2017, arXiv:1703.06211, section 2.2.

    Args:
        channels: channels of every level.
        strides: stride of each level in pixels, finest first, each twice the one before.
        offset_hidden: width of two hidden layers before the offsets, 1024 in Zhu et al. 2018; by default there are
            none, as in Dai et al.
    """

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        *,
        settings: PoolSettings = PoolSettings(),
        sampling: SamplingSettings = SamplingSettings(sampling_ratio=4),
        move: MoveSettings = MoveSettings(),
        offset_hidden: int | None = None,
    ) -> None:
        check_at_least(1, offset_hidden=offset_hidden)
        super().__init__(channels, strides, settings)
        self.sampling_ratio, self.gamma, self.modulated = sampling.sampling_ratio, move.gamma, move.modulated
        widths = [channels * self.output_size**2, *([offset_hidden] * 2 if offset_hidden else [])]
        layers: list[nn.Module] = [nn.Flatten()]
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        planes = 3 if move.modulated else 2
        last = _zeroed(nn.Linear(widths[-1], planes * self.output_size**2))
        self.offset_fc = nn.Sequential(*layers, last, nn.Unflatten(1, (planes, self.output_size, self.output_size)))

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Pool each RoI; see ``Pool.forward``."""
        return self.by_level(self._pool, features, rois, *self.bin_moves(features, rois))

    def bin_moves(self, features: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return how far the bins of each RoI move, ``(K, 2, k, k)``: along x, then y; and the mask, or None."""
        return _split(self.offset_fc(self.by_level(self._pool, features, rois, None, None)), 2)

    def _pool(self, feature: Tensor, rois: Tensor, scale: float, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        return deform_roi_pool(
            feature, rois, offset, self.output_size, scale, self.sampling_ratio, self.gamma, mask=mask
        )


class DeformablePSRoIPool(PositionSensitivePool):
    """Averages samples between pixels, each bin on maps of its own, moved as the place in the image tells it.

    A 1x1 convolution gives maps of offsets, which the same operator pools without offsets.

    Source: Dai et al., Deformable Convolutional Networks, 2017, arXiv:1703.06211, section 2.2; the offsets of all
    classes, and how bins are sampled, are those of the authors' released code.

    Args:
        channels: channels of every level, ``output_size`` squared times those of a pooled RoI.
        strides: stride of each level in pixels, finest first, each twice the one before.
        source_channels: channels of the map that the offsets come from; by default it is the map that is pooled.
        sets: how many groups of pooled channels have offsets of their own; divides them.
        sample_per_part: samples on each side of a bin.
    """

    bins_move = True

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        source_channels: int | None = None,
        sets: int = 1,
        *,
        settings: PoolSettings = PoolSettings(),
        move: MoveSettings = MoveSettings(),
        sample_per_part: int = 4,
    ) -> None:
        check_at_least(1, sample_per_part=sample_per_part)
        super().__init__(channels, strides, settings)
        if self.channels % sets:
            raise ValueError(f"sets: expected a divisor of the {self.channels} pooled channels, got {sets}")
        self.sets, self.gamma, self.sample_per_part = sets, move.gamma, sample_per_part
        source_channels, bins = source_channels or channels, self.output_size**2
        self.offset_conv = _zeroed(nn.Conv2d(source_channels, 2 * sets * bins, 1))
        self.offset_mask = _zeroed(nn.Conv2d(source_channels, bins, 1)) if move.modulated else None

    def moves_of(self, sources: list[Tensor]) -> list[Tensor]:
        """Return the maps of offsets, and of the mask after them; see ``PositionSensitivePool.moves_of``."""
        if self.offset_mask is None:
            return [self.offset_conv(source) for source in sources]
        return [torch.cat((self.offset_conv(source), self.offset_mask(source)), dim=1) for source in sources]

    def rows_of_sets(self) -> list[str]:
        """Return the convolution that gives offsets; see ``PositionSensitivePool.rows_of_sets``."""
        return ["offset_conv.weight", "offset_conv.bias"]

    def forward(self, features: list[Tensor], rois: Tensor, moves: Sequence[Tensor] = ()) -> Tensor:
        """Pool each RoI; see ``PositionSensitivePool.forward``."""
        return self.by_level(self._pool, features, rois, *self.bin_moves(features, rois, moves))

    def bin_moves(
        self, features: list[Tensor], rois: Tensor, moves: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return how far the bins of each RoI move, ``(K, 2 * sets, k, k)``, and the mask, or None; see ``forward``."""
        pooled = self.by_level(self._pool, moves or self.moves_of(features), rois, None, None)
        return _split(pooled, 2 * self.sets)

    def _pool(self, feature: Tensor, rois: Tensor, scale: float, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        return deform_ps_roi_pool(
            feature,
            rois,
            offset,
            self.output_size,
            scale,
            sample_per_part=self.sample_per_part,
            gamma=self.gamma,
            mask=mask,
        )


def _split(pooled: Tensor, planes: int) -> tuple[Tensor, Tensor | None]:
    """Return the offsets, and the mask where there is a plane for it after them."""
    if pooled.shape[1] == planes:
        return pooled, None
    return pooled[:, :planes], 2 * pooled[:, planes:].sigmoid()


def _zeroed(layer: nn.Module) -> nn.Module:
    """Return a layer whose parameters are zero, so that bins do not move before they have learned to."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

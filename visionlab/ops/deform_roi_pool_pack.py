"""Deformable RoI pools with their own offset branch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionlab.ops.checks import pair, refuse
from visionlab.ops.deform_ps_roi_pool import DeformPSRoIPool
from visionlab.ops.deform_roi_pool import DeformRoIPool


class OffsetBranch(nn.Sequential):
    """Fully connected layers from pooled boxes to an offset, and a mask, for each bin; the last one starts at zero.

    Args:
        features: values of a pooled box.
        hidden: width of the two hidden layers.
        offsets: shape of the offsets of a box.
        mask: shape of its mask; None gives none.
    """

    def __init__(
        self, features: int, hidden: int, offsets: tuple[int, int, int], mask: tuple[int, int, int] | None
    ) -> None:
        split = offsets[0] * offsets[1] * offsets[2]
        last = nn.Linear(hidden, split + (mask[1] * mask[2] if mask else 0))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
        self.offsets = offsets
        self.mask = mask
        self.split = split

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the offsets of pooled boxes, and their mask in (0, 1) or None."""
        branch = super().forward(pooled.flatten(1))
        offset = branch[:, : self.split].unflatten(1, self.offsets)
        if self.mask is None:
            return offset, None
        return offset, branch[:, self.split :].unflatten(1, self.mask).sigmoid()


class DeformRoIPoolPack(DeformRoIPool):
    """A deformable RoI pool that computes its own offsets from the boxes as they are before any bin moves.

    Dai et al. 2017 (arXiv:1703.06211, section 2.2): pooled without offsets, a box goes through fully connected layers
    that give the offsets of its bins. The last layer starts at zero, and so do the offsets. Modulated (Zhu et al. 2018,
    arXiv:1811.11168), it gives a mask as well, through a sigmoid, which starts at 0.5.

    Args:
        channels: channels of the input.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per pixel of the map that the bin covers.
        gamma: how far an offset of 1 moves a bin, as a share of the box.
        hidden: width of the two hidden layers.
        modulated: whether bins are also weighed by a mask.
    """

    def __init__(
        self,
        channels: int,
        output_size: int | Sequence[int] = 7,
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        gamma: float = 0.1,
        hidden: int = 1024,
        modulated: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        bins = pair("DeformRoIPoolPack", "output_size", output_size)
        mask = (1, *bins) if modulated else None
        self.modulated = modulated
        self.branch = OffsetBranch(channels * bins[0] * bins[1], hidden, (2, *bins), mask)

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Return the ``(K, C, height, width)`` pooled boxes of ``input``."""
        offset, mask = self.branch(super().forward(input, boxes))
        return super().forward(input, boxes, offset, mask)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        return f"{super().extra_repr()}, modulated={self.modulated}"


class DeformPSRoIPoolPack(DeformPSRoIPool):
    """A position-sensitive deformable RoI pool that computes its own offsets, see :class:`DeformRoIPoolPack`.

    Args:
        channels: channels of the output; the input has one set of them for each group.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        group_size: groups of channels ``(height, width)``, or one number for both; None is ``output_size``.
        part_size: parts ``(height, width)`` that a box has offsets for, or one number for both; None is
            ``output_size``.
        sample_per_part: samples along each side of a bin.
        gamma: how far an offset of 1 moves a bin, as a share of the box.
        classes: how many sets of offsets a box has; divides ``channels``.
        hidden: width of the two hidden layers.
        modulated: whether bins are also weighed by a mask.
    """

    def __init__(
        self,
        channels: int,
        output_size: int | Sequence[int] = 7,
        spatial_scale: float = 1.0,
        group_size: int | Sequence[int] | None = None,
        part_size: int | Sequence[int] | None = None,
        sample_per_part: int = 4,
        gamma: float = 0.1,
        classes: int = 1,
        hidden: int = 1024,
        modulated: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale, group_size, part_size, sample_per_part, gamma)
        if classes < 1 or channels % classes:
            refuse("DeformPSRoIPoolPack", "classes", f"a divisor of the channels, {channels}", classes)
        bins = pair("DeformPSRoIPoolPack", "output_size", output_size)
        parts = bins if part_size is None else pair("DeformPSRoIPoolPack", "part_size", part_size)
        mask = (1, *bins) if modulated else None
        self.modulated = modulated
        self.branch = OffsetBranch(channels * bins[0] * bins[1], hidden, (2 * classes, *parts), mask)

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Return the ``(K, C / groups, height, width)`` pooled boxes of ``input``."""
        offset, mask = self.branch(super().forward(input, boxes))
        return super().forward(input, boxes, offset, mask)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        return f"{super().extra_repr()}, modulated={self.modulated}"

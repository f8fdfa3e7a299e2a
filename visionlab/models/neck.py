"""What stands between a backbone and the two stages of a detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.checks import check_at_least, check_in
from visionlab.settings import Settings


class Neck(nn.Module, ABC):
    """Turns the levels of a backbone into those that the two stages look at.

    A detector's parts are built from what it says. A row of the table ``NECKS`` is called with the channels and the
    strides of the backbone's levels, finest first, and with its settings.

    Args:
        channels: channels of each level that the neck makes, finest first.
        strides: stride of each of them in pixels.
        proposal_levels: which of them, counted from 0, the first stage looks at; by default all.
        pooled_levels: which of them the second stage pools its RoIs from; by default all.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        *,
        proposal_levels: list[int] | None = None,
        pooled_levels: list[int] | None = None,
    ) -> None:
        super().__init__()
        every = list(range(len(strides)))
        self.channels, self.strides = list(channels), list(strides)
        self.proposal_levels = every if proposal_levels is None else list(proposal_levels)
        self.pooled_levels = every if pooled_levels is None else list(pooled_levels)

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the neck's levels.

        Args:
            features: one ``(N, C, H, W)`` map per backbone level, finest first.

        Returns:
            One ``(N, C, H, W)`` map per entry of ``strides``, finest first.
        """

    def width_and_strides(self, levels: list[int]) -> tuple[int, list[int]]:
        """Return the channels that some levels share, and the stride of each: what a stage is built from.

        Args:
            levels: ``proposal_levels`` or ``pooled_levels``.

        Raises:
            ValueError: the levels have different numbers of channels.
        """
        widths = {self.channels[level] for level in levels}
        if len(widths) != 1:
            raise ValueError(f"neck: expected levels of one number of channels, got {self.channels} at levels {levels}")
        return widths.pop(), [self.strides[level] for level in levels]


@dataclass(frozen=True, kw_only=True)
class PyramidSettings(Settings):
    """The form of a pyramid of features.

    Args:
        channels: channels of every level of the pyramid.
        extra_levels: levels added above the coarsest, each every second location of the one before.
    """

    channels: int = 256
    extra_levels: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, channels=self.channels)
        check_at_least(0, extra_levels=self.extra_levels)
        check_in("[0, 16]", extra_levels=self.extra_levels)  # no image has places that far apart


class Pyramid(Neck):
    """Levels of one width; proposals come from all of them, RoIs are pooled from all but the extra ones.

    Args:
        strides: stride of each level in pixels, finest first, extra levels excluded.
        form: width and extra levels.
    """

    def __init__(self, strides: list[int], form: PyramidSettings) -> None:
        every = [*strides, *(strides[-1] * 2 ** (i + 1) for i in range(form.extra_levels))]
        super().__init__([form.channels] * len(every), every, pooled_levels=list(range(len(strides))))

    def with_extra_levels(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return the levels of a pyramid, and the extra ones after them."""
        pyramid = list(pyramid)
        while len(pyramid) < len(self.strides):
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid

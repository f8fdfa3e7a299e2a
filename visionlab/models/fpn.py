"""Feature pyramid network: the semantics of coarse levels at the resolution of fine ones."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.checks import check_at_least


class FPN(nn.Module):
    """Merges the levels of a backbone, top down, into a pyramid of equal width.

    Source: Lin et al., Feature Pyramid Networks for Object Detection, 2016, arXiv:1612.03144.

    Args:
        in_channels: channels of each backbone level, finest first.
        strides: stride of each backbone level in pixels.
        channels: channels of every level of the pyramid.
        extra_levels: levels added above the coarsest, each every second location of the one before.
        norm: normalization after each convolution: ``none``, or ``group`` for 32 groups.

    Attributes:
        channels: channels of each level of the pyramid, extra levels included.
        strides: stride of each level of the pyramid.
    """

    def __init__(
        self,
        in_channels: list[int],
        strides: list[int],
        *,
        channels: int = 256,
        extra_levels: int = 1,
        norm: Literal["none", "group"] = "none",
    ) -> None:
        super().__init__()
        check_at_least(1, channels=channels)
        check_at_least(0, extra_levels=extra_levels)
        if norm == "group" and channels % 32:
            raise ValueError(f"channels: expected a multiple of 32 for group normalization, got {channels}")
        self.lateral = nn.ModuleList(_conv(width, channels, 1, norm) for width in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in in_channels)
        self.strides = [*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra_levels))]
        self.channels = [channels] * len(self.strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the pyramid.

        Args:
            features: one ``(N, C, H, W)`` map per backbone level, finest first.

        Returns:
            One ``(N, channels, H, W)`` map per entry of ``strides``, finest first.
        """
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        pyramid = [output(level) for output, level in zip(self.output, merged, strict=True)]
        while len(pyramid) < len(self.strides):
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid


def _conv(in_channels: int, channels: int, kernel: int, norm: str) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if norm == "group":
        return nn.Sequential(conv, nn.GroupNorm(32, channels))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv

"""Feature pyramid network: the semantics of coarse levels at the resolution of fine ones."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.models.neck import Pyramid, PyramidSettings
from visionlab.settings import flat_settings


class FPN(Pyramid):
    """Merges the levels of a backbone, top down, into a pyramid of equal width.

    Source: Lin et al., Feature Pyramid Networks for Object Detection, 2016, arXiv:1612.03144.

    Args:
        in_channels: channels of each backbone level, finest first.
        strides: stride of each backbone level in pixels.
        norm: normalization after each convolution: ``none``, or ``group`` for 32 groups.
    """

    @flat_settings
    def __init__(
        self,
        in_channels: list[int],
        strides: list[int],
        *,
        form: PyramidSettings = PyramidSettings(),
        norm: Literal["none", "group"] = "none",
    ) -> None:
        super().__init__(strides, form)
        channels = form.channels
        if norm == "group" and channels % 32:
            raise ValueError(f"channels: expected a multiple of 32 for group normalization, got {channels}")
        self.lateral = nn.ModuleList(_conv(width, channels, 1, norm) for width in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the pyramid.

        Args:
            features: one ``(N, C, H, W)`` map per backbone level, finest first.

        Returns:
            One ``(N, channels, H, W)`` map per entry of ``strides``, finest first.
        """
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] += F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        return self.with_extra_levels([output(level) for output, level in zip(self.output, merged, strict=True)])


def _conv(in_channels: int, channels: int, kernel: int, norm: str) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if norm == "group":
        return nn.Sequential(conv, nn.GroupNorm(32, channels))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv

"""Simple feature pyramid: a detector's levels from the one map of a plain vision transformer."""

from __future__ import annotations

from torch import Tensor, nn

from visionlab.checks import check_at_least
from visionlab.models.neck import Pyramid, PyramidSettings
from visionlab.settings import flat_settings


class SimpleFeaturePyramid(Pyramid):
    """Makes all levels of a pyramid from the last map of a backbone, each on its own: nothing flows between levels.

    A finer level doubles the resolution by transposed convolutions, a coarser one halves it by max pooling; each ends
    in a 1x1 and a 3x3 convolution with LayerNorm. It stands where an ``FPN`` stands and belongs to the detector, so a
    backbone's saved weights never hold it.

    Source: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, 2022, arXiv:2203.16527.

    Args:
        in_channels: channels of each backbone level; only the last level is used.
        strides: stride of each backbone level in pixels.
        level_strides: stride of each level to make, finest first: the backbone's stride times a power of two. For a
            transformer of patch size 14, for example, ``[7, 14, 28]``.

    Raises:
        ValueError: a level's stride that no doubling or halving of the backbone's reaches.
    """

    @flat_settings
    def __init__(
        self,
        in_channels: list[int],
        strides: list[int],
        *,
        form: PyramidSettings = PyramidSettings(),
        level_strides: list[int] | None = None,
    ) -> None:
        wanted = [4, 8, 16, 32] if level_strides is None else level_strides
        check_at_least(1, level_strides=wanted)
        if wanted != sorted(set(wanted)):
            raise ValueError(f"level_strides: expected ascending strides, got {wanted}")
        super().__init__(wanted, form)
        self.levels = nn.ModuleList(_level(in_channels[-1], form.channels, strides[-1], stride) for stride in wanted)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the pyramid.

        Args:
            features: the backbone's levels, finest first; the last is ``(N, C, H, W)``.

        Returns:
            One ``(N, channels, h, w)`` map per entry of ``strides``, finest first, with h and w those of the last level
            times its stride over the entry, rounded up.
        """
        return self.with_extra_levels([level(features[-1]) for level in self.levels])


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``(N, C, H, W)``."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _level(in_channels: int, channels: int, in_stride: int, stride: int) -> nn.Sequential:
    resize, width = _resize(in_channels, in_stride, stride)
    convolutions = [
        nn.Conv2d(width, channels, 1, bias=False),
        _ChannelNorm(channels, eps=1e-6),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        _ChannelNorm(channels, eps=1e-6),
    ]
    return nn.Sequential(*resize, *convolutions)


def _resize(width: int, in_stride: int, stride: int) -> tuple[list[nn.Module], int]:
    """Return the layers that take ``in_stride`` to ``stride``, and the width they end in."""
    fine, coarse = max(in_stride, stride), min(in_stride, stride)
    factor = fine // coarse
    if fine % coarse or factor & (factor - 1):
        raise ValueError(f"level_strides: expected {in_stride} times or over a power of two, got {stride}")
    steps = factor.bit_length() - 1
    if stride > in_stride:
        return [nn.MaxPool2d(2, ceil_mode=True) for _ in range(steps)], width
    layers: list[nn.Module] = []
    for step in range(steps):
        if step:
            layers += [_ChannelNorm(width, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return layers, width

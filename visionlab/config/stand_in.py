"""What stands for a backbone while a config is checked."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from visionlab.config.part import Part
from visionlab.models.encoder import Normalization
from visionlab.models.norm import NormPolicy

STRIDES = [4, 8, 16, 32]  # of most backbones
WIDTH = 256


def strides_of(backbone: Part) -> list[int]:
    """Return the strides of a backbone's levels: those that its settings ask for, or those of most."""
    usual = STRIDES[:-1] if backbone.roi_stage else STRIDES
    return backbone.strides or [stride for stride in usual if stride <= (backbone.output_stride or usual[-1])]


class StandIn(nn.Module):
    """Stands for the backbone that a pretext method is built on: an ``Encoder`` without weights.

    Args:
        backbone: its settings.
    """

    fixed_size: tuple[int, int] | None = None

    def __init__(self, backbone: Part) -> None:
        super().__init__()
        self.name: str = backbone.name
        self.settings: dict[str, Any] = backbone.arguments()
        self.norm: NormPolicy = backbone.norm
        self.strides: list[int] = strides_of(backbone)
        self.channels = [WIDTH] * len(self.strides)
        self.num_features = WIDTH
        self.normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.model: nn.Module = nn.BatchNorm2d(1)

    def normalize(self, pixels: Tensor, sizes: list[tuple[int, int]] | Tensor | None = None) -> Tensor:
        """Return images of the right shape."""
        return pixels.float()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature levels of the right shape."""
        count, _, height, width = images.shape
        sizes = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        return [images.new_zeros(count, WIDTH, *size) for size in sizes]

    def pool(self, images: Tensor) -> Tensor:
        """Return pooled features of the right shape."""
        return self(images)[-1].mean((2, 3))

"""What a network offers to those that build on its features: pretext methods, necks, probes."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from visionlab.models.norm import NormPolicy


@dataclass(frozen=True)
class Normalization:
    """How pixels become what a model was trained on: ``(pixels / 255 - mean) / std``, per RGB channel.

    Args:
        mean: three numbers in [0, 1].
        std: three positive numbers.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or not all(map(isfinite, values)) or (name == "std" and min(values) <= 0):
                raise ValueError(
                    f"normalization: {name} expects three {'positive ' * (name == 'std')}numbers, got {values}"
                )
            object.__setattr__(self, name, values)


@runtime_checkable
class Encoder(Protocol):
    """Images in, feature maps out, finest first. ``Backbone`` is one.

    What is not listed here, a method, neck or probe must not read of its encoder: while a config is checked, something
    smaller stands in the encoder's place.
    """

    name: str
    """What messages call it."""

    settings: dict[str, Any]
    """The arguments that build it again."""

    norm: NormPolicy
    """What its BatchNorm layers do."""

    model: nn.Module
    """The network inside, by whose layers it is told what is in it."""

    strides: list[int]
    """Of each feature level: pixels of the image for one place of the map."""

    channels: list[int]
    """Of each feature level."""

    fixed_size: tuple[int, int] | None
    """``(height, width)`` of the only images it takes; None if it takes any."""

    @property
    def num_features(self) -> int:
        """Channels of the last level, which are the pooled features."""

    @property
    def normalization(self) -> Normalization:
        """How ``normalize`` maps pixels."""

    def normalize(self, pixels: Tensor, sizes: list[tuple[int, int]] | Tensor | None = None) -> Tensor:
        """Turn ``(N, 3, H, W)`` uint8 RGB pixels into what the network takes; padding beyond ``sizes`` becomes 0.

        ``sizes`` are ``(height, width)`` of each image, as numbers or, for graphs, as an ``(N, 2)`` tensor.
        """

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return one ``(N, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))`` map per level."""

    def pool(self, images: Tensor) -> Tensor:
        """Return one ``(N, num_features)`` vector per image: the mean of the last level."""

"""One encoder for every tile of an image, each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab.models.backbone import Backbone

# Added to variances, in units of the encoder's normalization: a third of a gray level's square. What a flatter tile
# holds is the rounding of its pixels, which should not be blown up.
FLAT = 1e-4


def encode_tiles(encoder: Backbone, tiles: Sequence[Tensor], *, standardized: bool = False) -> Tensor:
    """Return the pooled features of tiles, all encoded in one pass.

    Args:
        encoder: what encodes them.
        tiles: T tensors ``(N, 3, S, S)`` uint8.
        standardized: give each tile its own mean 0 and variance 1.

    Returns:
        ``(T, N, num_features)``.
    """
    images = encoder.normalize(torch.cat(list(tiles)))
    features = encoder.pool(standardize(images) if standardized else images)
    return features.unflatten(0, (len(tiles), -1))


def standardize(images: Tensor) -> Tensor:
    """Return images whose every channel has mean 0 and variance 1.

    The encoder's own normalization may come before: it is one scale and offset for each channel, which cancel out.

    Args:
        images: ``(N, 3, H, W)``, normalized.

    Source: Noroozi and Favaro 2016, arXiv:1603.09246.
    """
    return F.instance_norm(images, eps=FLAT)


def check_tile_size(encoder: Backbone, tile_size: int) -> None:
    """Refuse tiles of another size than the only one that the encoder takes.

    Args:
        encoder: what is to encode the tiles.
        tile_size: side of a tile in pixels.
    """
    if encoder.fixed_size not in (None, (tile_size, tile_size)):
        raise ValueError(
            f"image_size: expected one that gives tiles of {encoder.fixed_size}, the only size that {encoder.name} "
            f"takes, got tiles of {tile_size} pixels"
        )

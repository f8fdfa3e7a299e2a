"""One encoder for every tile of an image, each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visionlab.models.backbone import Backbone


def encode_tiles(encoder: Backbone, tiles: Sequence[Tensor]) -> Tensor:
    """Return the pooled features of tiles, all encoded in one pass.

    Args:
        encoder: what encodes them.
        tiles: T tensors ``(N, 3, S, S)`` uint8.

    Returns:
        ``(T, N, num_features)``.
    """
    features = encoder.pool(encoder.normalize(torch.cat(list(tiles))))
    return features.unflatten(0, (len(tiles), -1))


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

"""Patch position: tell where one tile of an image lies from another."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from visionlab.checks import check_at_least
from visionlab.data.tiles import TileColor, Tiles, mosaic
from visionlab.models.backbone import Backbone
from visionlab.pretext.heads import projection_mlp
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.siamese import check_tile_size, encode_tiles
from visionlab.structures import ViewBatch

CENTER = 4
NEIGHBORS = (0, 1, 2, 3, 5, 6, 7, 8)


class PatchPosition(Pretext):
    """Predict in which of the eight places around the central tile of a 3 x 3 grid another tile belongs.

    Only an encoder that recognizes what the tiles show knows how they lie to each other. All nine tiles of an image go
    through the encoder once and give all eight pairs, so every place is asked for equally often.

    Args:
        encoder: the backbone to train.
        image_size: side of the square part of an image that the grid covers, in pixels; 398 gives the tiles of 96
            pixels of the paper.
        gap: distance between tiles as a share of their side.
        jitter: how far a tile moves at most in each direction, as a share of its side.
        color: what keeps the encoder from reading the place off the lens's color fringes: drop | project | keep. The
            first leaves it one of its channels, the second removes the green-magenta direction, the last does nothing.
        crop_scale: smallest and largest share of the image's area that the grid covers, in (0, 1].
        flip: probability of a horizontal mirror image.
        hidden_dim: width of the pair head's hidden layer.

    Source: Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction", 2015, arXiv:1505.05192.
    """

    def __init__(
        self,
        encoder: Backbone,
        *,
        image_size: int = 398,
        gap: float = 0.5,
        jitter: float = 0.075,
        color: TileColor = "drop",
        crop_scale: tuple[float, float] = (0.3, 1.0),
        flip: float = 0.5,
        hidden_dim: int = 4096,
    ):
        super().__init__(encoder)
        check_at_least(1, hidden_dim=hidden_dim)
        self.views = Tiles(image_size, gap=gap, jitter=jitter, color=color, crop_scale=crop_scale, flip=flip)
        check_tile_size(encoder, self.views.tile_size)
        self.head = projection_mlp(2 * encoder.num_features, hidden_dim, len(NEIGHBORS))

    def forward(self, batch: ViewBatch) -> PretextOutput:
        tiles = encode_tiles(self.encoder, batch.views)
        center, neighbors = tiles[CENTER], tiles[list(NEIGHBORS)]
        pairs = torch.cat([center.expand_as(neighbors), neighbors], dim=2)
        logits = self.head(pairs.flatten(0, 1))
        places = torch.arange(len(NEIGHBORS), device=logits.device).repeat_interleave(len(batch))
        accuracy = (logits.argmax(dim=1) == places).float().mean()
        return PretextOutput({"position": F.cross_entropy(logits, places)}, center, {"accuracy": accuracy})

    def pictures(self, batch: ViewBatch) -> ViewBatch:
        """Return the nine tiles of each image at their places."""
        return replace(batch, views=[mosaic(batch.views)])

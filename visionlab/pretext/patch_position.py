"""Patch position: tell where one tile of an image lies from another."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from visionlab.data.tiles import TileGap, Tiles, TileSettings, mosaic
from visionlab.data.views import ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.pretext.heads import HiddenWidth, projection_mlp
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.tile_encoding import check_tile_size, encode_tiles
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch

CENTER = 4
NEIGHBORS = (0, 1, 2, 3, 5, 6, 7, 8)


class PatchPosition(Pretext):
    """Predict in which of the eight places around the central tile of a 3 x 3 grid another tile belongs.

    Only an encoder that recognizes what the tiles show knows how they lie to each other. All nine tiles of an image go
    through the encoder once and give all eight pairs, so every place is asked for equally often.

    Args:
        encoder: the backbone to train.
        views: the part of an image that the grid covers; an ``image_size`` of 398 gives the tiles of 96 pixels of the
            paper.
        tiles: what becomes of each tile.
        spacing: the distance between them.
        hidden: the pair head's hidden layer.

    Source: Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction", 2015, arXiv:1505.05192.
    """

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings = ViewSettings(image_size=398),
        tiles: TileSettings = TileSettings(jitter=0.075, color="drop"),
        spacing: TileGap,
        hidden: HiddenWidth = HiddenWidth(hidden_dim=4096),
    ):
        super().__init__(encoder)
        self.views = Tiles(views=views, tiles=tiles, spacing=spacing)
        check_tile_size(encoder, self.views.tile_size)
        self.head = projection_mlp(2 * encoder.num_features, hidden.hidden_dim, len(NEIGHBORS))

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

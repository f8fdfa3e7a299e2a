"""Jigsaw: tell how the tiles of an image were shuffled."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab.checks import check_at_least
from visionlab.data.tiles import TileGap, TileGrid, Tiles, TileSettings, mosaic
from visionlab.data.views import ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.pretext.heads import HiddenWidth, projection_mlp
from visionlab.pretext.permutations import distant_permutations
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.tile_encoding import check_tile_size, encode_tiles, standardize
from visionlab.seeding import derive_seed
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch


class Jigsaw(Pretext):
    """Predict which of a set of permutations has shuffled the tiles of an image.

    The encoder sees each tile by itself and with its own mean and variance, so that neither edges that go on nor
    brightness tell how tiles lie to each other. Since it knows no context, it is their features that are shuffled.

    Args:
        encoder: the backbone to train.
        views: the part of an image that the grid covers; an ``image_size`` of 228 gives the tiles of 64 pixels of the
            paper.
        tiles: what becomes of each tile.
        spacing: the distance between them.
        layout: how many there are: 2 or 3 along each side.
        num_permutations: how many permutations there are to tell apart; they differ in as many places as can be.
        draws: permutations drawn for each image; more of them cost next to nothing.
        tile_dim: width of the layer that looks at each tile before all come together.
        hidden: the hidden layer that sees all tiles.

    Source: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", 2016,
    arXiv:1603.09246.
    """

    permutations: Tensor

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings = ViewSettings(image_size=228, grayscale=0.3),
        tiles: TileSettings = TileSettings(jitter=1 / 12, channel_shift=2),
        spacing: TileGap = TileGap(gap=1 / 6),
        layout: TileGrid,
        num_permutations: int = 1000,
        draws: int = 1,
        tile_dim: int = 512,
        hidden: HiddenWidth = HiddenWidth(hidden_dim=4096),
    ):
        super().__init__(encoder)
        check_at_least(2, num_permutations=num_permutations)
        check_at_least(1, draws=draws, tile_dim=tile_dim)
        self.views = Tiles(views=views, tiles=tiles, spacing=spacing, layout=layout)
        check_tile_size(encoder, self.views.tile_size)
        self.draws = draws
        self.register_buffer("permutations", distant_permutations(len(self.views), num_permutations))
        self.tile = nn.Sequential(nn.Linear(encoder.num_features, tile_dim), nn.ReLU())
        self.head = projection_mlp(len(self.views) * tile_dim, hidden.hidden_dim, num_permutations)

    def forward(self, batch: ViewBatch) -> PretextOutput:
        features = encode_tiles(self.encoder, batch.views, standardized=True)
        drawn = self._draw(batch)
        tiles = self.tile(features).repeat(1, self.draws, 1)
        logits = self.head(shuffle(tiles, self.permutations[drawn]).transpose(0, 1).flatten(1))
        accuracy = (logits.argmax(dim=1) == drawn).float().mean()
        center = features[len(features) // 2]
        return PretextOutput({"permutation": F.cross_entropy(logits, drawn)}, center, {"accuracy": accuracy})

    def pictures(self, batch: ViewBatch) -> ViewBatch:
        """Return the tiles of each image in order and shuffled, both as bright and as rich as the encoder sees."""
        seen = [standardize(self.encoder.normalize(tile)) for tile in batch.views]
        tiles = torch.stack([(128 + 50 * tile).clamp(0, 255).to(torch.uint8) for tile in seen])
        shuffled = shuffle(tiles, self.permutations[self._draw(batch)[: len(batch)]])
        return replace(batch, views=[mosaic(list(tiles)), mosaic(list(shuffled))])

    def _draw(self, batch: ViewBatch) -> Tensor:
        """Return the number of a permutation for each draw and image, ``(draws * N,)``, all first draws first."""
        numbers = [
            derive_seed(seed, "permutation", draw) % len(self.permutations)
            for draw in range(self.draws)
            for seed in batch.seeds
        ]
        return torch.tensor(numbers, device=self.permutations.device)


def shuffle(tiles: Tensor, orders: Tensor) -> Tensor:
    """Return tiles in other orders: place p of image i gets tile ``orders[i, p]``.

    Args:
        tiles: ``(T, N, ...)``.
        orders: ``(N, T)`` int64.
    """
    images = torch.arange(len(orders), device=orders.device)
    return tiles[orders.T, images]

"""Jigsaw: tell how the tiles of an image were shuffled."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab.checks import check_at_least
from visionlab.data.tiles import Tiles, mosaic
from visionlab.models.backbone import Backbone
from visionlab.pretext.heads import projection_mlp
from visionlab.pretext.permutations import distant_permutations
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.siamese import check_tile_size, encode_tiles, standardize
from visionlab.seeding import derive_seed
from visionlab.structures import ViewBatch


class Jigsaw(Pretext):
    """Predict which of a set of permutations has shuffled the tiles of an image.

    The encoder sees each tile by itself and with its own mean and variance, so that neither edges that go on nor
    brightness tell how tiles lie to each other. Since it knows no context, it is their features that are shuffled.

    Args:
        encoder: the backbone to train.
        image_size: side of the square part of an image that the grid covers, in pixels; 228 gives the tiles of 64
            pixels of the paper.
        grid: tiles along each side, 2 or 3.
        gap: mean distance between tiles as a share of their side.
        jitter: how far a tile moves at most in each direction, as a share of its side.
        channel_shift: how far each color channel of a tile moves on its own at most, in pixels, against the color
            fringes of lenses.
        grayscale: probability that an image loses all color, to the same end.
        crop_scale: smallest and largest share of the image's area that the grid covers, in (0, 1].
        flip: probability of a horizontal mirror image.
        num_permutations: how many permutations there are to tell apart; they differ in as many places as can be.
        draws: permutations drawn for each image; more of them cost next to nothing.
        tile_dim: width of the layer that looks at each tile before all come together.
        hidden_dim: width of the hidden layer that sees all tiles.

    Source: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", 2016,
    arXiv:1603.09246.
    """

    permutations: Tensor

    def __init__(
        self,
        encoder: Backbone,
        *,
        image_size: int = 228,
        grid: int = 3,
        gap: float = 1 / 6,
        jitter: float = 1 / 12,
        channel_shift: int = 2,
        grayscale: float = 0.3,
        crop_scale: tuple[float, float] = (0.3, 1.0),
        flip: float = 0.5,
        num_permutations: int = 1000,
        draws: int = 1,
        tile_dim: int = 512,
        hidden_dim: int = 4096,
    ):
        super().__init__(encoder)
        check_at_least(2, num_permutations=num_permutations)
        check_at_least(1, draws=draws, tile_dim=tile_dim, hidden_dim=hidden_dim)
        self.views = Tiles(
            image_size,
            grid=grid,
            gap=gap,
            jitter=jitter,
            channel_shift=channel_shift,
            crop_scale=crop_scale,
            flip=flip,
            grayscale=grayscale,
        )
        check_tile_size(encoder, self.views.tile_size)
        self.draws = draws
        self.register_buffer("permutations", distant_permutations(grid**2, num_permutations))
        self.tile = nn.Sequential(nn.Linear(encoder.num_features, tile_dim), nn.ReLU())
        self.head = projection_mlp(grid**2 * tile_dim, hidden_dim, num_permutations)

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

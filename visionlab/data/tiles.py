"""Grids of tiles cut from a random crop of an image, with gaps and jitter, and guards against reading off the lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import cv2
import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from visionlab.checks import check_above, check_at_least, check_in
from visionlab.data.views import Views, ViewSettings
from visionlab.seeding import derive_seed
from visionlab.settings import Settings, flat_settings

TileColor = Literal["keep", "drop", "project"]

GRAY = 128
_GREEN_MAGENTA = np.array([-1, 2, -1])
_PROJECTION = np.eye(3) - np.outer(_GREEN_MAGENTA, _GREEN_MAGENTA) / (_GREEN_MAGENTA @ _GREEN_MAGENTA)
# A random byte picks one of so many quantiles of the normal distribution: finer ones would vanish in whole gray levels.
_NORMAL = ndtri((np.arange(256) + 0.5) / 256)


@dataclass(frozen=True, kw_only=True)
class TileSettings(Settings):
    """What becomes of each tile, so that nothing but what it shows tells its place.

    Args:
        jitter: how far a tile moves at most in each direction, as a share of its side.
        channel_shift: how far each color channel of a tile moves on its own at most, in pixels, against the color
            fringes of lenses.
        color: what happens to a tile's colors, to the same end: drop | project | keep. The first leaves it one of its
            channels, the second removes the green-magenta direction, the last does nothing.
    """

    jitter: float = 0.0
    channel_shift: int = 0
    color: TileColor = "keep"

    def __post_init__(self) -> None:
        check_in("[0, 1]", jitter=self.jitter)
        check_at_least(0, channel_shift=self.channel_shift)


@dataclass(frozen=True, kw_only=True)
class TileGap(Settings):
    """The distance between tiles.

    Args:
        gap: mean distance between neighbors as a share of a tile's side; negative for tiles that overlap, above -1.
    """

    gap: float = 0.5

    def __post_init__(self) -> None:
        check_above(-1, gap=self.gap)


@dataclass(frozen=True, kw_only=True)
class TileGrid(Settings):
    """The grid of tiles.

    Args:
        grid: tiles along each side, at least 2.
    """

    grid: int = 3

    def __post_init__(self) -> None:
        check_at_least(2, grid=self.grid)


class Tiles:
    """Tiles of a square grid over a random crop of an image, row by row, each a view.

    Neighbors keep a distance, and each tile is moved at random, because edges and textures that run from one tile into
    the next would tell their places without a look at what they show.

    Lenses bend colors differently, so the offset between the color channels tells where in the photograph a tile was.
    ``color`` takes that hint away: ``drop`` keeps one random channel of each tile and puts noise, with a hundredth of
    its standard deviation, around mid-gray in place of the other two; ``project`` removes the green-magenta direction
    of colors from the whole crop, where saturated reds and blues are cut off at 0 and 255. ``channel_shift`` hides it
    behind random offsets.

    Args:
        views: the crop that the grid covers.
        tiles: what becomes of each tile. Unless tiles overlap, they may move by half the gap at most.
        spacing: the distance between them.
        layout: how many there are.

    Attributes:
        tile_size: side of a tile in pixels: the largest with which the grid fits.

    Raises:
        ValueError: a setting is out of its range, or there is no room for the grid.

    Source: Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction", 2015, arXiv:1505.05192,
    section 3.1; channel shifts: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
    Puzzles", 2016, arXiv:1603.09246.
    """

    @flat_settings
    def __init__(
        self,
        *,
        views: ViewSettings,
        tiles: TileSettings = TileSettings(jitter=0.075),
        spacing: TileGap,
        layout: TileGrid,
    ):
        gap, jitter = spacing.gap, tiles.jitter
        if gap >= 0 and jitter > gap / 2:
            raise ValueError(f"jitter: expected at most half the gap, {gap / 2:g}, got {jitter}: tiles would overlap")
        views.refuse_extra(["RandomGridShuffle"], "which moves what is to be told by its place")
        self._crop = Views.crops(views=views)
        self.grid, self.channel_shift, self.color = layout.grid, tiles.channel_shift, tiles.color
        self._fit(views.image_size, gap, jitter)

    def _fit(self, image_size: int, gap: float, jitter: float) -> None:
        """Find the largest tile with which the grid fits, and with it distances in pixels."""
        # No larger one fits even if all distances are rounded down.
        tiles_per_side = (self.grid - 1) * (1 + gap) + 1 + 2 * jitter
        largest = min(image_size, floor((image_size + 2) / tiles_per_side) + 1)
        for self.tile_size in range(largest, 0, -1):
            # Rounded first, so that 0.55 of 80 pixels is 44, whatever binary fractions make of it.
            self._step = self.tile_size + ceil(round(gap * self.tile_size, 6))
            self._jitter = floor(round(jitter * self.tile_size, 6))
            self._margin = self._jitter + self.channel_shift
            span = (self.grid - 1) * self._step + self.tile_size + 2 * self._margin
            if self._step > 0 and span <= image_size:
                self._start = self._margin + (image_size - span) // 2
                return
        raise ValueError(f"image_size: expected room for a grid of {self.grid} x {self.grid} tiles, got {image_size}")

    def __len__(self) -> int:
        return self.grid**2

    def __call__(self, image: np.ndarray, seed: int) -> list[Tensor]:
        """Return the tiles of an image, a pure function of the image and the seed.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            seed: the image's seed.

        Returns:
            ``grid ** 2`` uint8 tensors ``(3, tile_size, tile_size)``, row by row.
        """
        crop = self._crop(image, seed)[0].numpy()
        if self.color == "project":
            crop = project(crop)
        generator = np.random.default_rng(derive_seed(seed, "tiles"))
        tiles = self._cut(crop, generator)
        if self.color == "drop":
            drop_channels(tiles, generator)
        return list(torch.from_numpy(tiles))

    def _cut(self, crop: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return ``(grid ** 2, 3, tile_size, tile_size)``, each channel of a tile cut at its own place."""
        size, places = self.tile_size, np.indices((self.grid, self.grid)).reshape(2, -1).T
        corners = self._start + self._step * places
        corners = corners + generator.integers(-self._jitter, self._jitter + 1, corners.shape)
        shifts = generator.integers(-self.channel_shift, self.channel_shift + 1, (len(corners), 3, 2))
        tiles = np.empty((len(corners), 3, size, size), np.uint8)
        for tile, channels in zip(tiles, (corners[:, None] + shifts).tolist(), strict=True):
            for channel, (top, left) in enumerate(channels):
                tile[channel] = crop[channel, top : top + size, left : left + size]
        return tiles


def project(image: np.ndarray) -> np.ndarray:
    """Return a ``(3, H, W)`` uint8 image without the green-magenta direction of colors.

    Source: Doersch et al. 2015, arXiv:1505.05192, section 3.1: each pixel times ``I - a^T a / (a a^T)``, where a is
    (-1, 2, -1).
    """
    projected = cv2.transform(np.ascontiguousarray(image.transpose(1, 2, 0)), _PROJECTION)  # rounds, and cuts off
    return np.ascontiguousarray(projected.transpose(2, 0, 1))


def drop_channels(tiles: np.ndarray, generator: np.random.Generator) -> None:
    """Put noise in place of two of the three channels of each tile, in place.

    Args:
        tiles: ``(T, 3, H, W)`` uint8.
        generator: chooses the channels, and gives the noise.

    Source: Doersch et al. 2015, arXiv:1505.05192, section 3.1; there pixels have no mean, here mid-gray stands for it.
    """
    kept = generator.integers(0, 3, len(tiles))
    noise = generator.integers(0, 256, (len(tiles), 2, *tiles.shape[2:]), dtype=np.uint8)
    for tile, keep, random in zip(tiles, kept.tolist(), noise, strict=True):
        std = cv2.meanStdDev(tile[keep])[1].item()
        levels = np.rint(GRAY + std / 100 * _NORMAL).astype(np.uint8)
        for other, pixels in zip(((keep + 1) % 3, (keep + 2) % 3), random, strict=True):
            cv2.LUT(pixels, levels, dst=tile[other])


def mosaic(tiles: Sequence[Tensor], *, spacing: int = 2) -> Tensor:
    """Return tiles side by side on white, as pictures for people.

    Args:
        tiles: ``grid ** 2`` uint8 tensors ``(N, 3, S, S)``, row by row.
        spacing: white pixels between neighbors.

    Returns:
        ``(N, 3, side, side)`` uint8.
    """
    grid, size = round(len(tiles) ** 0.5), tiles[0].shape[-1]
    side = grid * (size + spacing) - spacing
    picture = tiles[0].new_full((len(tiles[0]), 3, side, side), 255)
    for number, tile in enumerate(tiles):
        top, left = (place * (size + spacing) for place in divmod(number, grid))
        picture[:, :, top : top + size, left : left + size] = tile
    return picture

"""Tiles are cut where they should be, and give away neither their neighbors nor the lens."""

import pickle

import cv2
import numpy as np
import pytest
import torch

from visionlab.data.tiles import Tiles, drop_channels, mosaic, project

WHOLE = {"crop_scale": (1.0, 1.0), "flip": 0.0}


@pytest.fixture(scope="module")
def map_of_places():
    """An image whose red is its column and whose green and blue are its row."""
    y, x = np.mgrid[0:240, 0:240].astype(np.uint8)
    return np.stack([x, y, y], 2)


@pytest.fixture(scope="module")
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(noise, (96, 72), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("settings", "tile_size", "step", "jitter"),
    [
        # Doersch et al. 2015, section 3: tiles of 96 pixels, a gap of 48, up to 7 pixels of jitter.
        ({"image_size": 398}, 96, 144, 7),
        # Noroozi and Favaro 2016, section 4: tiles of 64 pixels somewhere in cells of 75.
        ({"image_size": 225, "gap": 1 / 6, "jitter": 1 / 12}, 64, 75, 5),
        # van den Oord et al. 2018, section 3.2: 7 x 7 patches of 64 pixels that overlap by half in 256.
        ({"image_size": 256, "grid": 7, "gap": -0.5, "jitter": 0.0}, 64, 32, 0),
        # Henaff et al. 2020: 6 x 6 patches of 80 pixels, 36 apart, in 260.
        ({"image_size": 260, "grid": 6, "gap": -0.55, "jitter": 0.0}, 80, 36, 0),
    ],
)
def test_grids_of_the_papers(map_of_places, settings, tile_size, step, jitter):
    image = cv2.resize(map_of_places, (settings["image_size"],) * 2, interpolation=cv2.INTER_NEAREST)
    tiles = Tiles(**settings, **WHOLE)
    assert tiles.tile_size == tile_size
    views = tiles(image, 0)
    assert len(tiles) == len(views) == settings.get("grid", 3) ** 2
    assert all(view.shape == (3, tile_size, tile_size) and view.dtype == torch.uint8 for view in views)
    assert all(view.is_contiguous() for view in views)
    assert (tiles._step, tiles._jitter) == (step, jitter)


def places(views):
    """Return the row and column where each tile was cut out of the map, ``(T, 2)``."""
    return np.array([[int(view[1, 0, 0]), int(view[0, 0, 0])] for view in views])


def test_tiles_stand_on_the_grid_and_are_whole_pieces(map_of_places):
    views = Tiles(image_size=240, gap=0.25, jitter=0.0, **WHOLE)(map_of_places, 5)
    size = views[0].shape[-1]
    corners = places(views)
    step = size + -(-size // 4)
    expected = np.array([[row * step, column * step] for row in range(3) for column in range(3)])
    np.testing.assert_array_equal(corners - corners[0], expected)
    for view, (top, left) in zip(views, corners, strict=True):
        piece = map_of_places[top : top + size, left : left + size].transpose(2, 0, 1)
        np.testing.assert_array_equal(view.numpy(), piece)


def test_jitter_is_even_in_both_directions_and_keeps_the_gap(map_of_places):
    tiles = Tiles(image_size=240, gap=0.25, jitter=0.125, **WHOLE)
    size = tiles.tile_size
    corners = np.array([places(tiles(map_of_places, seed)) for seed in range(300)])
    offsets = corners - (corners.min(0) + corners.max(0)) // 2
    reach = size // 8
    assert offsets.min() == -reach
    assert offsets.max() == reach
    counts = np.bincount((offsets + reach).astype(int).ravel(), minlength=2 * reach + 1)
    expected = offsets.size / (2 * reach + 1)
    assert (np.abs(counts - expected) < 5 * expected**0.5).all()
    assert abs(np.corrcoef(offsets[:, 0, 0], offsets[:, 1, 0])[0, 1]) < 0.2  # each tile moves on its own
    rows = corners[:, :, 0].reshape(-1, 3, 3)
    assert (np.diff(rows, axis=1) >= size).all()
    assert corners.min() >= 0
    assert corners.max() + size <= 240


def test_channels_move_on_their_own(map_of_places):
    shifted = Tiles(image_size=240, jitter=0.0, channel_shift=2, **WHOLE)
    views = [view for seed in range(50) for view in shifted(map_of_places, seed)]
    # Green and blue both hold the row: without a shift they would be equal.
    apart = np.array([int(view[1, 0, 0]) - int(view[2, 0, 0]) for view in views])
    assert set(apart) == set(range(-4, 5))
    # The difference of two even draws from 5 is triangular.
    assert abs((apart == 0).mean() - 1 / 5) < 0.06


def test_a_tile_depends_on_image_seed_and_number_alone(picture):
    settings = {"image_size": 60, "color": "drop", "channel_shift": 1, "grayscale": 0.3}
    used, fresh = Tiles(**settings), pickle.loads(pickle.dumps(Tiles(**settings)))
    for seed in range(3):
        used(picture, seed)
    np.random.seed(1)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(used(picture, 2**62), fresh(picture, 2**62), strict=True))
    assert not torch.equal(used(picture, 1)[0], used(picture, 2)[0])


def test_projection_leaves_nothing_between_green_and_magenta():
    a = np.array([[-1, 2, -1]])
    matrix = np.eye(3) - a.T @ a / (a @ a.T)
    colors = np.random.default_rng(0).integers(60, 196, (3, 20, 30), dtype=np.uint8)
    projected = project(colors)
    expected = np.einsum("ij,jhw->ihw", matrix, colors.astype(float))
    assert np.abs(projected - expected).max() < 0.7
    assert np.abs(np.einsum("j,jhw->hw", a[0], projected.astype(float))).max() < 4 * 0.7  # what rounding leaves
    gray = np.full((3, 2, 2), 77, np.uint8)
    np.testing.assert_array_equal(project(gray), gray)
    # Saturated colors are cut off.
    np.testing.assert_array_equal(project(np.array([255, 0, 0], np.uint8).reshape(3, 1, 1)).ravel(), [212, 85, 0])


def test_dropped_channels_are_noise_around_gray():
    generator = np.random.default_rng(0)
    tiles = np.clip(generator.normal(120, 60, (300, 3, 16, 16)), 0, 255).astype(np.uint8)
    before = tiles.copy()
    drop_channels(tiles, generator)
    kept = (tiles == before).all((2, 3))
    assert (kept.sum(1) == 1).all()
    assert (np.abs(kept.mean(0) - 1 / 3) < 0.09).all()
    noise = tiles[~kept].astype(float)
    assert abs(noise.mean() - 128) < 0.02
    # The standard deviation is a hundredth of that of the channel that is left, plus what rounding adds.
    assert abs(noise.std() ** 2 - (before[kept].std() / 100) ** 2 - 1 / 12) < 0.03
    first, second = noise.reshape(300, 2, -1).transpose(1, 0, 2)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_colors_of_a_grid(picture):
    kept = Tiles(image_size=60, **WHOLE)(picture, 3)
    dropped = Tiles(image_size=60, color="drop", **WHOLE)(picture, 3)
    projected = Tiles(image_size=60, color="project", **WHOLE)(picture, 3)
    for tile, drop, flat in zip(kept, dropped, projected, strict=True):
        assert sum(torch.equal(tile[channel], drop[channel]) for channel in range(3)) == 1
        np.testing.assert_array_equal(flat.numpy(), project(tile.numpy()))


def test_a_mosaic_shows_every_tile():
    tiles = [torch.full((2, 3, 4, 4), number, dtype=torch.uint8) for number in range(9)]
    picture = mosaic(tiles, spacing=1)
    assert picture.shape == (2, 3, 14, 14)
    np.testing.assert_array_equal(picture[0, 0, ::5, ::5][:3, :3], np.arange(9).reshape(3, 3))
    assert (picture[:, :, 4] == 255).all()
    assert picture[1, 2, 13, 13] == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 1}, "grid: expected at least 2"),
        ({"gap": -1.0}, "gap: expected more than -1"),
        ({"gap": 0.1, "jitter": 0.06}, "jitter: expected at most half the gap, 0.05"),
        ({"jitter": -0.1}, "jitter: expected"),
        ({"channel_shift": -1}, "channel_shift: expected at least 0"),
        ({"image_size": 4}, "image_size: expected room for a grid of 3 x 3 tiles, got 4"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"grayscale": 2.0}, "grayscale: expected"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**({"image_size": 60} | settings))

"""Jigsaw against its formula, image by image, and what it shows the network."""

import pytest
import torch
from small_encoder import SmallEncoder, assert_same_gradients, gradients, random_views

from visionlab.pretext.jigsaw import Jigsaw, shuffle
from visionlab.pretext.tile_encoding import FLAT, standardize
from visionlab.seeding import derive_seed
from visionlab.structures import ViewBatch

SEEDS = [5, 6, 2**62]


def small(**settings):
    torch.manual_seed(0)
    defaults = {"image_size": 64, "grid": 2, "num_permutations": 10, "tile_dim": 3, "hidden_dim": 5}
    return Jigsaw(SmallEncoder(), **(defaults | settings)).double()


def own_scale(pixels):
    """Return a ``(3, H, W)`` tile whose channels have mean 0 and variance 1."""
    channels = []
    for channel in pixels:
        centered = channel - channel.mean()
        channels.append(centered / ((centered**2).mean() + FLAT).sqrt())
    return torch.stack(channels)


def formula(method, views, draws):
    """Mean over draws and images of -log softmax of the permutation by which the tiles were put in their places."""
    linear, norm, _, last = method.head
    rows, labels = [], []
    for draw in range(draws):
        for image, seed in enumerate(SEEDS):
            label = derive_seed(seed, "permutation", draw) % 10
            tiles = []
            for tile in method.permutations[label].tolist():
                pixels = own_scale(method.encoder.normalize(views[tile][image]))
                tiles.append(method.tile(method.encoder.pool(pixels[None]))[0])
            rows.append(linear.weight @ torch.cat(tiles))
            labels.append(label)
    hidden = torch.stack(rows)
    centered = hidden - hidden.mean(0)
    normalized = centered / ((centered**2).mean(0) + norm.eps).sqrt() * norm.weight + norm.bias
    total = 0
    for label, row in zip(labels, normalized, strict=True):
        scores = last.weight @ row.clamp_min(0) + last.bias
        total = total - (scores - scores.exp().sum().log())[label]
    return total / len(labels)


@pytest.mark.parametrize("draws", [1, 3])
def test_loss_and_gradient_are_those_of_the_formula(draws):
    method = small(draws=draws)
    views = random_views(4)
    loss = method(ViewBatch(views, seeds=SEEDS)).losses["permutation"]
    expected = formula(method, views, draws)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, method), gradients(expected, method))


def test_shuffled_features_are_those_of_shuffled_tiles():
    tiles = torch.arange(4 * 2).reshape(4, 2)
    orders = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2]])
    assert shuffle(tiles, orders).tolist() == [[0, 7], [2, 3], [4, 1], [6, 5]]


def test_permutations_are_drawn_evenly_from_the_seeds_alone():
    method = small(draws=2)
    seeds = [derive_seed(0, index) for index in range(2000)]
    drawn = method._draw(ViewBatch([], seeds=seeds))
    counts = torch.bincount(drawn, minlength=10)
    assert len(drawn) == 4000
    assert (counts - 400).abs().max() < 100
    torch.manual_seed(1)
    assert torch.equal(method._draw(ViewBatch([], seeds=seeds[:5]))[:5], drawn[:5])
    assert not torch.equal(drawn[:2000], drawn[2000:])


def test_standardized_tiles_tell_neither_brightness_nor_contrast():
    images = torch.stack(random_views(1)[0].unbind()).double()
    torch.testing.assert_close(standardize(7 * images - 30), standardize(images), rtol=1e-6, atol=1e-6)
    assert standardize(torch.full((1, 3, 4, 4), 0.3)).abs().max() < 1e-5
    # Half of the pixels one gray level apart is not blown up to full contrast.
    assert standardize(torch.tensor([0.0, 0.0174]).repeat(1, 3, 2, 1)).abs().max() < 0.75


def test_the_picture_is_the_puzzle_before_and_after():
    method = small()
    batch = ViewBatch(random_views(4), seeds=SEEDS)
    solved, shuffled = method.pictures(batch).views
    assert solved.shape == shuffled.shape == (3, 3, 18, 18)
    for image in range(3):
        order = method.permutations[method._draw(batch)[image]].tolist()
        corners = [(0, 0), (0, 10), (10, 0), (10, 10)]
        for place, tile in enumerate(order):
            (y, x), (v, u) = corners[place], corners[tile]
            assert torch.equal(shuffled[image, :, y : y + 8, x : x + 8], solved[image, :, v : v + 8, u : u + 8])
    assert abs(solved[:, :, :8, :8].float().mean() - 128) < 2


def test_permutations_are_in_the_checkpoint():
    assert torch.equal(small().state_dict()["permutations"], small().permutations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_permutations": 1}, "num_permutations: expected at least 2"),
        ({"num_permutations": 25}, "permutations: expected at most 24"),
        ({"grid": 4}, "permutations: expected at most 362880 of at most 9 tiles, got 10 of 16"),
        ({"draws": 0}, "draws: expected at least 1"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)

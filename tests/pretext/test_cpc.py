"""Contrastive predictive coding against its formula, patch by patch, and against one process."""

import math

import pytest
import torch
from small_encoder import SmallEncoder, assert_same_gradients, gradients, random_views
from tiny_runs import PRETRAIN

from visionlab.models.backbone import Backbone
from visionlab.pretext.cpc import ContrastivePredictiveCoding, MaskedBlock, _contrast
from visionlab.structures import ViewBatch

GRID = 4


def small(**settings):
    torch.manual_seed(0)
    defaults = {"image_size": 40, "grid": GRID, "predict_rows": 2, "context_layers": 2, "context_dim": 5}
    return ContrastivePredictiveCoding(SmallEncoder(), **(defaults | {"target_dim": 3} | settings)).double()


def context_of(network, grid):
    """The context at every place of ``{(row, column): features}``, by sums over places not below."""
    *blocks, _ = network
    nothing = torch.zeros(5, dtype=torch.float64)
    for block in blocks:
        reduced = {p: (block.reduce.weight[:, :, 0, 0] @ z + block.reduce.bias).clamp_min(0) for p, z in grid.items()}
        across = {}
        for y, x in grid:
            near = (block.across.weight[:, :, 0, 1 + d] @ reduced.get((y, x + d), nothing) for d in (-1, 0, 1))
            across[y, x] = sum(near) + block.across.bias
        new = {}
        for y, x in grid:
            above, here = (across.get((y + d, x), nothing) for d in (-1, 0))
            hidden = block.down.weight[:, :, 0, 0] @ above + block.down.weight[:, :, 1, 0] @ here + block.down.bias
            new[y, x] = grid[y, x] + block.expand.weight[:, :, 0, 0] @ hidden.clamp_min(0) + block.expand.bias
        grid = new
    return {place: features.clamp_min(0) for place, features in grid.items()}


# Where a place of the grid, as a direction sees it, lies in the image.
PLACES = {
    "down": lambda y, x: (y, x),
    "up": lambda y, x: (GRID - 1 - y, x),
    "right": lambda y, x: (x, y),
    "left": lambda y, x: (x, GRID - 1 - y),
}


def formula(method, views, steps):
    """Minus the mean, over directions and steps, of the mean over predictions of log(right / mean of all)."""
    features = [method.encoder.pool(method.encoder.normalize(view)) for view in views]
    terms = []
    for name, direction in method.directions.items():
        images = []
        for image in range(len(views[0])):
            places = {(y, x): PLACES[name](y, x) for y in range(GRID) for x in range(GRID)}
            images.append({seen: features[GRID * row + column][image] for seen, (row, column) in places.items()})
        targets = [{p: direction.target.weight @ z + direction.target.bias for p, z in g.items()} for g in images]
        everyone = torch.stack([target for image in targets for target in image.values()])
        for step, predict in zip(steps, direction.predictions, strict=True):
            logs = []
            for grid, target in zip(images, targets, strict=True):
                for (y, x), context in context_of(direction.context, grid).items():
                    if y + step < GRID:
                        predicted = (predict.weight @ context + predict.bias) / math.sqrt(3)
                        scores = (everyone @ predicted).exp()
                        logs.append(((target[y + step, x] @ predicted).exp() / scores.mean()).log())
            terms.append(torch.stack(logs).mean())
    return -torch.stack(terms).mean()


@pytest.mark.parametrize(
    ("directions", "skip_rows", "steps"), [(1, 1, (2, 3)), (2, 0, (1, 2)), (3, 1, (2, 3)), (4, 1, (2, 3))]
)
def test_loss_and_gradient_are_those_of_the_formula(directions, skip_rows, steps):
    method = small(directions=directions, skip_rows=skip_rows)
    views = random_views(GRID**2, images=2)
    loss = method(ViewBatch(views)).losses["prediction"]
    expected = formula(method, views, steps)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-13)
    assert_same_gradients(gradients(loss, method), gradients(expected, method))


def test_the_context_knows_nothing_of_the_rows_below():
    torch.manual_seed(0)
    network = torch.nn.Sequential(*(MaskedBlock(4, 8) for _ in range(3))).double()
    grid = torch.randn(1, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    for row in range(5):
        (slope,) = torch.autograd.grad(network(grid)[0, :, row, 3].square().sum(), grid)
        reached = slope[0].abs().sum(0) > 0
        assert not reached[row + 1 :].any()
        assert reached[max(row - 3, 0) : row + 1, 3].all()  # each block adds a row above
        assert reached[row].all()  # and a column to either side


def test_accuracy_is_how_often_the_right_patch_is_picked_and_certainty_is_the_log_of_their_number():
    candidates = 1000 * torch.eye(5)
    information, accuracy = _contrast(candidates[:4], candidates, torch.tensor([0, 1, 2, 4]))
    assert accuracy == 0.75
    assert information < 0
    information, accuracy = _contrast(candidates[:4], candidates, torch.arange(4))
    assert accuracy == 1
    assert information.item() == pytest.approx(math.log(5), abs=1e-6)


def test_autocast_does_not_narrow_the_scores():
    predicted, candidates = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = _contrast(predicted, candidates, torch.arange(6))
    with torch.autocast("cpu", torch.bfloat16):
        assert _contrast(predicted, candidates, torch.arange(6)) == expected


@pytest.mark.parametrize("norm", ["train", "sync"])
def test_batch_norm_is_refused(norm):
    with pytest.raises(ValueError, match=f"^norm: expected group or frozen for cpc, got {norm}: batch norm would tell"):
        ContrastivePredictiveCoding(Backbone(**PRETRAIN["backbone"], norm=norm), image_size=64)


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_patches_are_encoded_by_themselves(norm):
    """What a patch becomes does not depend on the others, even while training."""
    method = ContrastivePredictiveCoding(Backbone(**PRETRAIN["backbone"], norm=norm), image_size=32).train()
    views = random_views(49, images=2)
    others = [view if number == 24 else 255 - view for number, view in enumerate(views)]
    first, second = (method(ViewBatch(v)).embedding for v in (views, others))
    torch.testing.assert_close(first, second)


def test_a_model_without_batch_norm_trains_as_it_is():
    backbone = Backbone(name="vit_tiny_patch16_224", image_size=32, options={"depth": 1, "embed_dim": 12})
    method = ContrastivePredictiveCoding(backbone, image_size=80, grid=4, predict_rows=2)
    assert method.views.tile_size == 32
    method(ViewBatch(random_views(16, size=32))).losses["prediction"].backward()


def test_the_picture_is_the_grid():
    (picture,) = small().pictures(ViewBatch(random_views(16))).views
    assert picture.shape == (3, 3, 38, 38)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 0.0}, r"overlap: expected a number in \(0, 1\)"),
        ({"directions": 5}, r"directions: expected a number in \[1, 4\]"),
        ({"predict_rows": 3}, r"predict_rows: expected at most 3 together with skip_rows in a grid of 4, got 3 \+ 1"),
        ({"context_layers": 0}, "context_layers: expected at least 1"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        small(**settings)

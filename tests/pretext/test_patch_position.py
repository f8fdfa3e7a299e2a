"""Patch position against its formula, pair by pair, and what it shows the network."""

import pytest
import torch
from small_encoder import SmallEncoder, assert_same_gradients, gradients, random_views

from visionlab.models.backbone import Backbone
from visionlab.pretext.patch_position import PatchPosition
from visionlab.structures import ViewBatch


def formula(method, views):
    """Mean over images and places of -log softmax of a pair's place, in the order of the places, row by row."""
    linear, norm, _, last = method.head
    places = [number for number in range(9) if number != 4]
    rows = []
    for place in places:
        for image in range(len(views[0])):
            center, other = (method.encoder.pool(method.encoder.normalize(views[n][image][None])) for n in (4, place))
            rows.append(linear.weight @ torch.cat([center[0], other[0]]))
    hidden = torch.stack(rows)
    centered = hidden - hidden.mean(0)
    normalized = centered / ((centered**2).mean(0) + norm.eps).sqrt() * norm.weight + norm.bias
    total = 0
    for number, row in enumerate(normalized):
        scores = last.weight @ row.clamp_min(0) + last.bias
        total = total - (scores - scores.exp().sum().log())[number // len(views[0])]
    return total / len(normalized)


def test_loss_and_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    method = PatchPosition(SmallEncoder(), image_size=40, hidden_dim=7).double()
    views = random_views(9)
    loss = method(ViewBatch(views)).losses["position"]
    expected = formula(method, views)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, method), gradients(expected, method))


def test_accuracy_is_one_when_tiles_say_where_they_are():
    torch.manual_seed(0)
    method = PatchPosition(SmallEncoder(), image_size=40, hidden_dim=32).double()
    views = [torch.full((4, 3, 8, 8), 25 * number, dtype=torch.uint8) for number in range(9)]
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    for _ in range(150):
        output = method(ViewBatch(views))
        optimizer.zero_grad()
        output.losses["position"].backward()
        optimizer.step()
    assert output.metrics["accuracy"] == 1


def test_the_picture_is_the_grid():
    method = PatchPosition(SmallEncoder(), image_size=40)
    (picture,) = method.pictures(ViewBatch(random_views(9))).views
    assert picture.shape == (3, 3, 28, 28)
    assert torch.equal(picture[:, :, 10:18, 10:18], random_views(9)[4])


def test_a_transformer_is_an_encoder():
    backbone = Backbone(name="vit_tiny_patch16_224", image_size=32, options={"depth": 1, "embed_dim": 12})
    method = PatchPosition(backbone, image_size=140, hidden_dim=8)
    assert method.views.tile_size == 34
    output = method(ViewBatch(random_views(9, size=34)))
    output.losses["position"].backward()


def test_a_model_of_fixed_size_needs_tiles_of_that_size():
    encoder = SmallEncoder()
    encoder.fixed_size = (64, 64)
    with pytest.raises(
        ValueError, match=r"^image_size: expected one that gives tiles of \(64, 64\), .* got tiles of 96"
    ):
        PatchPosition(encoder)

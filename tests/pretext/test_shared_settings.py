"""Settings that methods share do the same in each of them."""

from typing import Any

import numpy as np
import pytest
import torch
from small_methods import backbone_section, batch_of, section
from torch import Tensor, nn

from visionlab.data.tiles import TileSettings
from visionlab.data.views import ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.pretext import PRETEXTS, Pretext
from visionlab.settings import groups_of

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
VIEW_CHANGES = {"flip": 1.0, "color_strength": 1.0, "grayscale": 1.0, "blur": 1.0, "solarize": 1.0}
TILE_CHANGES = {"jitter": 0.05, "channel_shift": 2, "color": "project"}
WHOLE = {"image_size": 96, "crop_scale": (1.0, 1.0), **dict.fromkeys(VIEW_CHANGES, 0.0)}
WHOLE_TILES = {"jitter": 0.0, "channel_shift": 0, "color": "keep"}
TILE_METHODS = [name for name, method in PRETEXTS.items() if "tiles" in groups_of(method)]


def build(method: str, **changes: Any) -> Pretext:
    torch.manual_seed(0)
    settings = section(method) | changes
    return PRETEXTS[settings.pop("name")](Backbone(**backbone_section(method)), **settings)


def views(method: str, **changes: Any) -> Tensor:
    """Return the views of an image that nothing but the given settings change."""
    whole = WHOLE | WHOLE_TILES if method in TILE_METHODS else WHOLE
    return torch.stack(build(method, **whole | changes).views(IMAGE, 3))


def test_every_method_has_the_settings_of_views_and_those_of_grids_have_the_settings_of_tiles():
    assert all(groups_of(method)["views"].kind is ViewSettings for method in PRETEXTS.values())
    assert all(groups_of(PRETEXTS[name])["tiles"].kind is TileSettings for name in TILE_METHODS)
    assert TILE_METHODS == ["patch_position", "jigsaw", "cpc"]


@pytest.mark.parametrize("method", PRETEXTS)
def test_every_change_of_views_reaches_them(method):
    plain = views(method)
    changed = {name: views(method, **{name: value}) for name, value in VIEW_CHANGES.items()}
    assert not [name for name, found in changed.items() if torch.equal(found, plain)]
    assert torch.equal(changed["grayscale"][:, 0], changed["grayscale"][:, 1])
    assert views(method, image_size=128).shape[-1] > plain.shape[-1]


@pytest.mark.parametrize("method", TILE_METHODS)
def test_every_change_of_tiles_reaches_them(method):
    plain = views(method)
    changed = {name: views(method, **{name: value}) for name, value in TILE_CHANGES.items()}
    assert not [name for name, found in changed.items() if torch.equal(found, plain)]


@pytest.mark.parametrize(
    ("method", "head"),
    [("simclr", "projection"), ("vicreg", "expander"), ("jigsaw", "head"), ("patch_position", "head")],
)
def test_a_head_without_hidden_layers_is_one_linear_layer(method, head):
    pretext = build(method, hidden_dim=None)
    [layer] = getattr(pretext, head)
    assert isinstance(layer, nn.Linear)
    sum(pretext(batch_of(pretext)).losses.values()).backward()
    assert layer.weight.grad.abs().max() > 0


def test_the_scorer_of_dim_has_a_width():
    with pytest.raises(ValueError, match=r"^hidden_dim: expected the width of the scorer's layers, got none$"):
        build("dim", hidden_dim=None)

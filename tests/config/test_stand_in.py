"""The stand-in for a backbone offers what the backbone offers."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import pytest
import torch
from torch import nn

from visionlab.config.part import part_of
from visionlab.config.stand_in import StandIn
from visionlab.models.backbone import Backbone
from visionlab.models.encoder import Encoder

SETTINGS = {"name": "resnet18", "strides": [8, 16, 32], "options": {"channels": [8, 16, 32, 64]}}
PUBLIC = sorted(
    name for name in get_type_hints(Encoder).keys() | vars(Encoder).keys() if name == "__call__" or name[0] != "_"
)


@pytest.fixture(scope="module")
def encoders() -> list[Encoder]:
    return [Backbone(**SETTINGS).eval(), StandIn(part_of(Backbone)(**SETTINGS))]


def test_the_protocol_is_not_empty():
    assert {"settings", "strides", "channels", "num_features", "normalize", "pool", "model"} < set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_attribute_is_there_with_one_type(encoders, name):
    real, stand_in = (getattr(encoder, name) for encoder in encoders)
    if name == "model":
        assert isinstance(real, nn.Module)
        assert isinstance(stand_in, nn.Module)
    elif inspect.ismethod(real) and name != "__call__":
        assert inspect.signature(real) == inspect.signature(stand_in)
        assert (
            inspect.signature(real).parameters
            == inspect.signature(getattr(Encoder, name))
            .replace(parameters=list(inspect.signature(getattr(Encoder, name)).parameters.values())[1:])
            .parameters
        )
    else:
        assert type(real) is type(stand_in)


def test_both_are_encoders(encoders):
    assert all(isinstance(encoder, Encoder) for encoder in encoders)
    assert not isinstance(nn.Linear(1, 1), Encoder)
    real, stand_in = encoders
    assert real.settings == stand_in.settings
    assert (real.name, real.norm, real.strides) == (stand_in.name, stand_in.norm, stand_in.strides)


def test_shapes_are_those_the_protocol_promises(encoders):
    pixels = torch.zeros(2, 3, 40, 72, dtype=torch.uint8)
    for encoder in encoders:
        images = encoder.normalize(pixels, [(40, 72), (30, 60)])
        levels = encoder(images)
        assert [tuple(level.shape) for level in levels] == [
            (2, channels, -(-40 // stride), -(-72 // stride))
            for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
        ]
        assert encoder.pool(images).shape == (2, encoder.num_features)

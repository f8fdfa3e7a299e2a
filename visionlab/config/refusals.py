"""What constructors refuse, asked before a run reads any file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from visionlab.config.part import Part
from visionlab.data.sources import DETECT_DATA, PRETRAIN_DATA
from visionlab.models.backbone import Backbone, check_backbone
from visionlab.settings import check_groups
from visionlab.train.loop import check_training, train
from visionlab.train.optim import adamw, check_optimizer, sgd

# The constructors that need files, or seconds, and what they themselves call first. All others are simply built.
CHECKS: dict[Callable[..., Any], Callable[..., None]] = {
    Backbone: check_backbone,
    train: check_training,
    sgd: check_optimizer,
    adamw: check_optimizer,
}
# Those that need files to be called, and whose groups of settings refuse all that can be refused without.
READERS = {*PRETRAIN_DATA.values(), *DETECT_DATA.values()}
STRIDES = [4, 8, 16, 32]  # of most backbones
WIDTH = 256


class AnyEncoder(nn.Module):
    """Stands for the backbone that a pretext method is built on.

    Args:
        backbone: its settings.
    """

    name = "the backbone"
    num_features = WIDTH
    fixed_size = None

    def __init__(self, backbone: Part) -> None:
        super().__init__()
        self.strides = backbone.strides or STRIDES
        self.channels = [WIDTH] * len(self.strides)
        self.norm = backbone.norm
        self.model = nn.BatchNorm2d(1)


SAMPLES = SimpleNamespace(files=[""], groups=None)
FOLDER = Path()


def refusals(name: str, section: Part, *parts: Any) -> Iterator[tuple[str, str]]:
    """Yield what a constructor says against its settings, if it does, with the keys that lead there.

    Args:
        name: the key of the section.
        section: the settings.
        parts: what the program gives the constructor, or something that stands for it.
    """
    constructor = type(section).constructor
    check = CHECKS.get(constructor)
    try:
        if constructor in READERS:
            check_groups(constructor, section.arguments())
        elif check:
            check(*parts, **section.arguments())
        else:
            _build(section, *parts)
    except ValueError as error:
        yield _place(name, section, str(error))


def pretext_refusals(backbone: Part, pretext: Part) -> Iterator[tuple[str, str]]:
    """Yield what a pretext method says against its settings, or against those of the backbone it is built on."""
    found = list(refusals("pretext", pretext, AnyEncoder(backbone)))
    if found:
        # Now it is worth the seconds to build the backbone: what is refused may fit its own levels and layers.
        try:
            found = list(refusals("pretext", pretext, _build(backbone)))
        except ValueError as error:
            found = [_place("backbone", backbone, str(error))]
    for key, message in found:
        # What is wrong may be a setting of the backbone: the method can only say which.
        place, what = _place("backbone", backbone, message)
        yield (place, what) if key == "pretext" and place != "backbone" else (key, message)


def detector_refusals(backbone: Part, neck: Part, rpn: Part, head: Part) -> Iterator[tuple[str, str]]:
    """Yield what the parts of a detector say against their settings."""
    strides = backbone.strides
    found = list(_refusals_at(strides or STRIDES, neck, rpn, head))
    if found and strides is None:
        # Now it is worth the seconds to build the backbone: what is refused may fit its own strides.
        try:
            found = list(_refusals_at(_build(backbone).strides, neck, rpn, head))
        except ValueError as error:
            found = [_place("backbone", backbone, str(error))]
    yield from found


def _refusals_at(strides: list[int], neck: Part, rpn: Part, head: Part) -> Iterator[tuple[str, str]]:
    channels = [WIDTH] * len(strides)
    try:
        pyramid = _build(neck, channels, strides)
    except ValueError as error:
        yield _place("neck", neck, str(error))
        return
    yield from refusals("rpn", rpn, pyramid.channels[0], pyramid.strides)
    pooled = pyramid.strides[: len(pyramid.strides) - neck.extra_levels]
    yield from refusals("head", head, pyramid.channels[0], pooled, 1)


def _build(section: Part, *parts: Any) -> Any:
    with torch.random.fork_rng([]):  # that a config is read must not change what comes after
        return section.build(*parts)


def _place(name: str, section: Part, message: str) -> tuple[str, str]:
    """Return the keys that a constructor's ``setting: what`` leads to, and what is wrong there."""
    setting, _, what = message.partition(": ")
    known = what and setting.partition(".")[0] in type(section).model_fields
    return (f"{name}.{setting}", what) if known else (name, message)

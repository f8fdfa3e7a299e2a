"""A setting is declared once, in whichever constructors of a config it may stand."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from visionlab.choices import OneOf, choices_of
from visionlab.config.part import From
from visionlab.config.schema import Detect, Pretrain
from visionlab.settings import groups_of

# Names that mean another thing in each section that has them, and are kept because files say them so.
HOMONYMS = {
    "root": "of a folder of images it may be left out, of annotated data it is where their paths start",
    "image_size": "of views, of the images a backbone is built for, of drawn images",
    "norm": "what a backbone's BatchNorm layers do; whether a pyramid has GroupNorm",
    "channels": "of every level of a pyramid; of one level, which keeps those of the backbone by default",
    "pool": "of each kind of head, which has a default of its own",
    "momentum": "of an optimizer; of MoCo's slow copy",
    "flip": "how often a training image is mirrored; whether an evaluation also looks at the mirror image",
    "every": "steps between two checkpoints; steps between two rows of the log",
    "max_detections": "that a head gives; that an evaluation counts",
    "gamma": "what a schedule multiplies the learning rate by; how far an offset moves a bin, in both papers",
}


def constructors() -> Iterator[Callable[..., Any]]:
    """Yield every constructor that a config may choose."""
    waiting = [
        item.source
        for kind in (Pretrain, Detect)
        for field in kind.model_fields.values()
        for item in field.metadata
        if isinstance(item, From)
    ]
    while waiting:
        source = waiting.pop()
        table = source.table if isinstance(source, OneOf) else source
        for constructor in table.values() if isinstance(table, dict) else [table]:
            yield constructor
            waiting += choices_of(constructor).values()


def declaration(constructor: Callable[..., Any], setting: str) -> str:
    """Return what declares a setting: a group, or the constructor itself."""
    for group in groups_of(constructor).values():
        for kind in group.kind.__mro__:
            if setting in vars(kind).get("__annotations__", {}):
                return kind.__qualname__
    return inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor).__qualname__


def test_every_setting_is_declared_once():
    declared: dict[str, set[str]] = defaultdict(set)
    for constructor in constructors():
        for parameter in inspect.signature(constructor).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                declared[parameter.name].add(declaration(constructor, parameter.name))
    assert len(declared) > 100
    assert {name: owners for name, owners in declared.items() if len(owners) > 1}.keys() == HOMONYMS.keys()

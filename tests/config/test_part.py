"""The schema read off a signature."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import pytest
from pydantic import ValidationError

from visionlab.config.part import From, argument_help, part_of

if TYPE_CHECKING:
    from nowhere import Encoder  # type: ignore[import-not-found]


class Method:
    """Do it.

    At length.

    Args:
        encoder: what is trained.
        temperature: of the softmax, above 0;
            the lower, the harder: a ratio.
        height, width: of a view.

    Returns:
        steps: not an argument.
    """

    def __init__(
        self, encoder: Encoder, *, temperature: float, height: int = 3, width: int = 4, mode: Literal["a", "b"] = "a"
    ):
        self.values = (encoder, temperature, height, width, mode)


class Inheriting(Method):
    pass


def function(parameters: list, rate: float = 3, *, momentum: float = 0.9) -> tuple:
    """Optimize.

    Args:
        parameters: what changes.
        momentum: of the past.
    """
    return parameters, rate, momentum


@functools.wraps(function)
def wrapped(*arguments, **settings):
    return function(*arguments, **settings)


def test_settings_are_what_stands_after_the_star():
    assert list(part_of(Method).model_fields) == ["temperature", "height", "width", "mode"]
    assert list(part_of(Method, "method").model_fields) == ["name", "temperature", "height", "width", "mode"]
    assert list(part_of(function).model_fields) == ["momentum"]


@pytest.mark.parametrize("constructor", [Inheriting, wrapped])
def test_signatures_that_stand_elsewhere(constructor):
    expected = Method if constructor is Inheriting else function
    assert list(part_of(constructor).model_fields) == list(part_of(expected).model_fields)


def test_annotations_defaults_and_help():
    fields = part_of(Method).model_fields
    assert fields["temperature"].annotation is float
    assert fields["temperature"].is_required()
    assert fields["mode"].annotation == Literal["a", "b"]
    assert fields["mode"].default == "a"
    assert fields["temperature"].description == "of the softmax, above 0; the lower, the harder: a ratio."
    assert fields["height"].description == fields["width"].description == "of a view."
    assert part_of(Method).__doc__ == "Do it."


def test_builds_with_parts_before_the_star_and_settings_after():
    assert part_of(Method, "method")(name="method", temperature=1, width=5).build("encoder").values == (
        "encoder",
        1,
        3,
        5,
        "a",
    )
    assert part_of(function)().build([1], 7) == ([1], 7, 0.9)


def test_frozen_closed_and_strict():
    part = part_of(Method)(temperature=1)
    for change in (lambda: setattr(part, "height", 3), lambda: part_of(Method)(temperature=1, heigth=3)):
        with pytest.raises(ValidationError):
            change()
    for settings in (
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": 1, "height": 1.5},
        {"temperature": 1, "height": "3"},
    ):
        with pytest.raises(ValidationError):
            part_of(Method)(**settings)


def test_one_model_per_constructor():
    assert part_of(Method) is part_of(Method) is not part_of(Method, "method")


def test_a_constructor_that_breaks_the_rule_is_named():
    def bare(*, rate):
        pass

    def named(*, name: str):
        pass

    with pytest.raises(TypeError, match="bare: setting rate has no annotation"):
        part_of(bare)
    assert list(part_of(named).model_fields) == ["name"]
    with pytest.raises(TypeError, match='named: a setting cannot be called "name" in a table'):
        part_of(named, "choice")


def test_where_a_section_comes_from():
    assert [list(part.model_fields) for part in From({"f": function, "w": wrapped}).parts] == [["name", "momentum"]] * 2
    [part] = From(Method, without=("mode", "width")).parts
    assert list(part.model_fields) == ["temperature", "height"]
    assert From(Method).parts == From(Method).parts


@pytest.mark.parametrize("doc", ["", "Do it.", "Do it.\n\nReturns:\n    x: y"])
def test_no_help(doc):
    assert argument_help(doc) == {}

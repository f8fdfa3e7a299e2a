"""Groups of settings: one declaration, called flat, refused where they are declared."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import pytest

from visionlab.checks import check_above
from visionlab.config.part import part_of
from visionlab.settings import Settings, check_groups, flat_settings, groups_of


@dataclass(frozen=True, kw_only=True)
class Size(Settings):
    """How large.

    Args:
        width: in pixels.
        scales: several of them.
    """

    width: int
    scales: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        check_above(0, width=self.width)


class Picture:
    """A picture.

    Args:
        title: above it.
        size: its size.
        depth: in bits.
    """

    @flat_settings
    def __init__(self, title: str, *, size: Size = Size(width=8), depth: int = 3) -> None:
        self.title, self.size, self.depth = title, size, depth


def test_settings_are_given_side_by_side_or_as_a_whole():
    assert Picture("a", width=4, depth=1).size == Size(width=4)
    assert Picture("a").size == Size(width=8)
    assert Picture("a", size=Size(width=2, scales=[2.0])).size.scales == [2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": 4}, "widht"),
        ({"width": 4, "size": Size(width=4)}, "expected size or its settings, got both: width"),
    ],
)
def test_unknown_or_repeated_settings_are_type_errors(settings, message):
    with pytest.raises(TypeError, match=message):
        Picture("a", **settings)


def test_a_group_refuses_what_is_out_of_range_wherever_it_is_used():
    with pytest.raises(ValueError, match="width: expected more than 0, got 0"):
        Picture("a", width=0)
    with pytest.raises(ValueError, match="width: expected more than 0, got -1"):
        check_groups(Picture, {"width": -1, "depth": 5})


def test_the_signature_lists_every_setting_with_the_defaults_that_count():
    parameters = inspect.signature(Picture).parameters
    assert list(parameters) == ["title", "width", "scales", "depth"]
    assert parameters["width"].default == 8
    assert groups_of(Picture)["size"].kind is Size
    assert not groups_of(dict)


def test_a_config_section_is_read_off_the_groups_too():
    part = part_of(Picture)
    assert part(width=5).build("a").size == Size(width=5)
    assert part.model_fields["width"].description == "in pixels."
    assert part.model_fields["depth"].description == "in bits."


def test_a_setting_of_two_groups_cannot_be_told_apart():
    with pytest.raises(TypeError, match="scales, width"):

        @flat_settings
        def twice(*, one: Size, two: Size) -> None: ...

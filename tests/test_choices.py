"""A setting that is itself a section, chosen by name from a table."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

from visionlab.checks import check_above
from visionlab.choices import OneOf
from visionlab.config.load import ConfigError, load, show
from visionlab.config.part import From, Part, Section, part_of


class Align:
    """Sample at points.

    Args:
        stride: of the map.
        pool_size: cells along each side.
    """

    def __init__(self, stride: int = 4, *, pool_size: int = 7) -> None:
        check_above(0, pool_size=pool_size)
        self.stride, self.pool_size = stride, pool_size


def average(stride: int = 4, *, bins: int) -> tuple[int, int]:
    """Take means.

    Args:
        stride: of the map.
        bins: along each side.
    """
    return stride, bins


POOL = OneOf({"align": Align, "average": average})
ONLY = OneOf({"align": Align})


class Head:
    """A head.

    Args:
        pool: how pixels become cells.
        second: another.
        only: where there is one choice.
    """

    def __init__(
        self,
        *,
        pool: Annotated[dict[str, Any], POOL] = {"name": "align", "pool_size": 5},  # noqa: B006
        second: Annotated[dict[str, Any] | None, POOL] = None,
        only: Annotated[dict[str, Any], ONLY] = {"name": "align"},  # noqa: B006
    ) -> None:
        self.pool, self.second = POOL.build("pool", pool, 8), second
        self.only = ONLY.complete(only)


class Lab(Section):
    head: Annotated[Part, From(Head)] = From(Head).default()

    def conflicts(self):
        try:
            self.head.build()
        except ValueError as error:
            yield f"head.{str(error).partition(': ')[0]}", str(error).partition(": ")[2]


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(*overrides: str) -> Lab:
        (tmp_path / "a.yaml").write_text("head: {}")
        return load("a.yaml", overrides, Lab)

    return read


def test_a_section_inside_a_section_is_built_from_its_table(read):
    head = read("head.pool={name: average, bins: 3}", "head.second={name: align}").head.build()
    assert head.pool == (8, 3)
    assert head.second == {"name": "align", "pool_size": 7}


def test_defaults_stand_in_the_resolved_config_and_in_the_schema(read):
    shown = yaml.safe_load(show(read()))["head"]
    assert shown == {
        "pool": {"name": "align", "pool_size": 5},
        "second": None,
        "only": {"name": "align", "pool_size": 7},
    }
    assert read("head.only={pool_size: 2}").head.build().only == {"name": "align", "pool_size": 2}
    text = str(TypeAdapter(Lab).json_schema())
    assert "how pixels become cells" in text
    assert "cells along each side" in text


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("head.pool={name: aline}", 'head.pool.name: unknown choice, expected one of align, average, got "aline". Did'),
        ("head.pool={}", "head.pool.name: missing, expected one of align, average"),
        ("head.pool={name: average}", "head.pool.bins: missing, expected an integer (along each side)"),
        ("head.pool={name: align, bins: 3}", "head.pool.bins: unknown key. Keys here: name, pool_size"),
        ("head.pool={name: align, pool_size: x}", "head.pool.pool_size: wrong value, expected an integer, got"),
        ("head.pool=align", "head.pool: wrong value, expected a section with name: one of align, average, got"),
        ("head.pool=null", "head.pool: wrong value, expected a section with name: one of align, average, got null"),
        ("head.second={name: align, pool_size: x}", "head.second.pool_size: wrong value, expected an integer, got"),
        ("head.pool={name: align, pool_size: 0}", "head.pool.pool_size: expected more than 0, got 0"),
        ("head.only={pol_size: 0}", 'head.only.pol_size: unknown key. Did you mean "pool_size"'),
    ],
)
def test_faults_are_told_like_those_of_other_sections(read, override, fault):
    with pytest.raises(ConfigError) as caught:
        read(override)
    [line] = caught.value.faults
    assert line.startswith(f'override "{override}": {fault}')


def test_the_constructor_refuses_without_a_config():
    with pytest.raises(ValueError, match=r"^pool\.name: expected align or average, got 'aline'$"):
        Head(pool={"name": "aline"})
    with pytest.raises(ValueError, match=r"^pool\.pool_size: expected more than 0, got -1$"):
        Head(pool={"name": "align", "pool_size": -1})
    assert part_of(Head)().arguments()["pool"] == {"name": "align", "pool_size": 5}

"""A data source is complete: each place that CONTRIBUTING lists has it, and the one that is missing is named."""

import re
from pathlib import Path

import pytest
import test_api

from visionlab.data.layouts import LAYOUTS
from visionlab.data.sources import DETECT_DATA, PRETRAIN_DATA

ROOT = Path(__file__).parents[3]


def place_of(name: str) -> dict[str, bool]:
    """Whether each place of CONTRIBUTING's list, as it is written there, has the layout."""
    layout = ROOT / f"visionlab/data/layouts/{name}.py"
    table = "visionlab.data.sources"
    choices = [test_api.CHOICES[f"{table}.PRETRAIN_DATA"].split(), test_api.CHOICES[f"{table}.DETECT_DATA"].split()]
    return {
        "`visionlab/data/layouts/NAME.py`": layout.is_file() and "\ndef read(" in layout.read_text(),
        "`visionlab/data/layouts/__init__.py`": name in LAYOUTS,
        "`visionlab/data/sources.py`": name in PRETRAIN_DATA and name in DETECT_DATA,
        "`tests/data/layouts/test_NAME.py`": (ROOT / f"tests/data/layouts/test_{name}.py").is_file(),
        "`tests/test_api.py`": all(name in choice for choice in choices),
    }


def listed() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.search(r"## Add a data source\n(.*?)\n## ", text, re.DOTALL)
    assert section
    return re.findall(r"^- (`[^`]+`)", section[1], re.MULTILINE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_place_is_missing(name):
    assert [place.replace("NAME", name) for place, there in place_of(name).items() if not there] == []


def test_the_list_names_these_places():
    assert listed() == list(place_of("coco"))


def test_a_missing_place_is_named():
    assert [place for place, there in place_of("unheard_of").items() if not there] == listed()

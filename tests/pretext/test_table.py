"""Every method has all that CONTRIBUTING.md ("Add a pretext method") says belongs to one."""

from pathlib import Path

import pytest

from visionlab import pretext
from visionlab.pretext import PRETEXTS

ROOT = Path(__file__).parent.parent.parent
FILES = [
    "visionlab/pretext/{}.py",
    "tests/pretext/test_{}.py",
    "configs/{}_resnet50.yaml",
    "configs/examples/{}_small.yaml",
]
COMPARED = ["cifar", "imagenette"]  # on which there may be several variants of a method, NAME_VARIANT.yaml
LINES = {
    "visionlab/pretext/__init__.py": '"{}":',
    "README.md": "| `{}` |",
    "tests/test_api.py": " {}",
}


@pytest.mark.parametrize("method", PRETEXTS)
def test_a_method_has_its_files_and_its_lines(method):
    missing = [name for name in (file.format(method) for file in FILES) if not (ROOT / name).is_file()]
    missing += [
        f"configs/compare/{data}/{method}.yaml"
        for data in COMPARED
        if not list((ROOT / "configs" / "compare" / data).glob(f"{method}*.yaml"))
    ]
    missing += [
        f"{name}: {line.format(method)}"
        for name, line in LINES.items()
        if line.format(method) not in (ROOT / name).read_text()
    ]
    assert not missing, f"{method}: missing {', '.join(missing)}"
    kind = PRETEXTS[method]
    assert kind.__module__ == f"visionlab.pretext.{method}"
    assert kind.__name__ in pretext.__all__


def test_contributing_names_every_place():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index("## Add a pretext method") :].split("\n## ")[0]
    places = [file.format("NAME") for file in FILES] + list(LINES)
    places += [f"configs/compare/{data}/NAME.yaml" for data in COMPARED]
    assert not [place for place in places if f"`{place}`" not in section]

"""An operator is complete: each place that CONTRIBUTING lists has it, and the one that is missing is named."""

import re
from pathlib import Path

import pytest
import test_compiled_numbers
import torch
from operators import cases, fuzz_cases
from operators.names import OPERATORS
from operators.samples import samples

from visionlab import ops
from visionlab.ops import onnx, register

ROOT = Path(__file__).parents[2]
FILES = {"batched_nms": "nms", "nms_padded": "nms", "box_iou": "boxes"}  # names of files other than the operator's
KERNELS = {"batched_nms": "nms", "nms_padded": "nms", "multi_scale_roi_align": "roi_align"}
SCHEMAS = {"batched_nms": "nms"}  # operators of torch that go by another name
NOT_IN_ONNX: dict[str, str] = {}  # operators without a formula, and why


def written(path: str, pattern: str) -> bool:
    file = ROOT / path
    return file.is_file() and re.search(pattern, file.read_text()) is not None


def has_fake(name: str) -> bool:
    return torch._library.simple_registry.singleton.find(f"visionlab::{name}").fake_impl.kernel is not None


def place_of(operator: str) -> dict[str, bool]:
    """Whether each place of CONTRIBUTING's list, as it is written there, has the operator."""
    file, kernel, name = FILES.get(operator, operator), KERNELS.get(operator, operator), SCHEMAS.get(operator, operator)
    registered = rf'm\.impl\("{name}"'
    return {
        "`csrc/library.cpp`": written("csrc/library.cpp", rf'"{name}\('),
        "`csrc/ops/NAME.h`": (ROOT / f"csrc/ops/{kernel}.h").is_file(),
        "`csrc/ops/cpu/NAME.cpp`": written(f"csrc/ops/cpu/{kernel}.cpp", registered),
        "`csrc/ops/cuda/NAME.cu`": (ROOT / f"csrc/ops/cuda/{kernel}.cu").is_file(),
        "`csrc/ops/cuda/NAME.cpp`": written(f"csrc/ops/cuda/{kernel}.cpp", registered),
        "`visionlab/ops/NAME.py`": written(f"visionlab/ops/{file}.py", rf"def {operator}\(") and has_fake(name),
        "`visionlab/ops/__init__.py`": operator in ops.__all__ and callable(getattr(ops, operator, None)),
        "`visionlab/ops/reference/NAME.py`": name in register.REFERENCES
        and written(f"visionlab/ops/reference/{file}.py", rf"def {name}\("),
        "`visionlab/ops/onnx/`": (name in onnx.FORMULAS) != (name in NOT_IN_ONNX),
        "`tests/ops/test_NAME.py`": written(f"tests/ops/test_{file}.py", rf"\b{operator}\b"),
        "`tests/ops/test_compiled_numbers.py`": operator == "box_iou"  # which takes no number
        or any(call.split()[0] == operator for call in test_compiled_numbers.CALLS),
        "`OPERATORS.md`": written("OPERATORS.md", rf"\*\*`[^*]*\b{operator}\b[^*]*\*\*"),
        "`benchmarks/operators/cases.py`": any(case.op == operator and case.quick for case in cases.CASES),
        "`benchmarks/operators/fuzz_cases.py`": operator in fuzz_cases.CASES,
        "`benchmarks/operators/samples.py`": any(sample.op == operator for sample in samples()),
        "`BENCHMARKS.md`": written("BENCHMARKS.md", rf"(?m)^\|{operator}\|"),
    }


def missing(operator: str) -> list[str]:
    name = FILES.get(operator, operator)
    return [place.replace("NAME", name) for place, there in place_of(operator).items() if not there]


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_place_has_the_operator(operator: str):
    absent = missing(operator)
    assert not absent, f"{operator} is missing in {', '.join(absent)}"


def test_contributing_lists_these_places_and_no_others():
    steps = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add an op\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^- (`[^`]+`)", steps, re.MULTILINE)
    assert sorted(listed) == sorted(place_of("roi_align"))


def test_the_schemas_of_the_table_are_the_operators():
    known = {SCHEMAS.get(name, name) for name in OPERATORS}
    assert {name.removesuffix("_backward") for name in register.REFERENCES} == known


def test_an_operator_that_is_nowhere_is_missing_everywhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "has_fake", lambda name: False)
    assert set(missing("no_such_operator")) == {
        place.replace("NAME", "no_such_operator") for place in place_of("no_such_operator")
    }


def test_what_is_taken_away_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(fuzz_cases.CASES, "roi_align")
    monkeypatch.delitem(onnx.FORMULAS, "roi_align")
    assert missing("roi_align") == ["`visionlab/ops/onnx/`", "`benchmarks/operators/fuzz_cases.py`"]

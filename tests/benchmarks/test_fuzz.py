"""Some hundred random and hostile calls of every operator, and what the fuzzer itself must notice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operators import fuzz, fuzz_cases
from operators.names import OPERATORS

from visionlab import ops

ROOT = Path(__file__).parent.parent.parent


def many(op: str, cases: int = 50) -> list[str]:
    return [fuzz.run(op, seed=7, number=number) for number in range(cases)]


@pytest.mark.parametrize("op", OPERATORS)
def test_operator_returns_or_refuses(op: str):
    answers = many(op, 300)
    assert answers.count("returned") > 150
    assert answers.count("refused") > 0


def test_every_operator_has_cases():
    assert list(fuzz_cases.CASES) == OPERATORS


def test_a_case_is_the_same_every_time():
    first, second = (fuzz_cases.Draw("nms", 3, 14) for _ in range(2))
    assert torch.equal(first.tensor(4, 5).nan_to_num(), second.tensor(4, 5).nan_to_num())
    assert first.kind == second.kind


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda boxes, scores, threshold: scores.long(), "must not have"),
        (lambda boxes, scores, threshold: torch.arange(len(boxes)).float(), "must not have"),
        (lambda boxes, scores, threshold: boxes.missing, "AttributeError"),
        (lambda boxes, scores, threshold: boxes.view(-1, 7, 3), "does not begin with the operator's name"),
    ],
)
def test_a_broken_operator_is_noticed(monkeypatch: pytest.MonkeyPatch, broken, fault: str):
    monkeypatch.setattr(ops, "nms", broken)
    with pytest.raises(fuzz.FuzzFailure, match=fault):
        many("nms")


def test_an_infinite_answer_to_finite_input_is_noticed(monkeypatch: pytest.MonkeyPatch):
    box_iou = ops.box_iou
    monkeypatch.setattr(ops, "box_iou", lambda *boxes: box_iou(*boxes) / 0)
    with pytest.raises(fuzz.FuzzFailure, match="finite input gave an answer that is not"):
        many("box_iou")


def command(*arguments: str) -> subprocess.CompletedProcess:
    script = str(ROOT / "benchmarks" / "fuzz_ops.py")
    return subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip


@pytest.mark.slow
def test_command_line_counts_and_repeats():
    many = command("--ops", "nms", "--cases", "20", "--processes", "1", "--seed", "5")
    assert many.returncode == 0, many.stdout + many.stderr
    assert "seed 5, 20 cases" in many.stdout
    assert "ok   nms" in many.stdout
    one = command("--ops", "nms", "--case", "3", "--seed", "5")
    assert one.stdout.split()[0] == "nms", one.stderr


def test_a_library_without_sanitizers_is_refused():
    result = command("--ops", "nms", "--cases", "1", "--processes", "1", "--sanitized")
    assert result.returncode == 1

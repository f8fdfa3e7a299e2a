"""What gpu_check does where there is no GPU, and what it writes where there is one."""

import json
import sys
from pathlib import Path

import gpu_check
import pytest
from operators import gpu

FAKE = {"gpus": ["Imaginary GPU"], "arch": "90", "torch": "2.11.0", "cuda": "13.0"}


def test_no_gpu_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: None)
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err.startswith("gpu_check: no GPU")


def script(code: str, **settings) -> gpu_check.Step:
    return gpu_check.Step("step", (sys.executable, "-c", code), **settings)


@pytest.mark.parametrize(
    ("step", "left", "status", "detail"),
    [
        (script("print('fine')"), 60, "passed", "fine"),
        (script("raise SystemExit('broken')"), 60, "failed", "exit code 1: broken"),
        (script("import time; time.sleep(60)", most=5.5), 60, "failed", "not done after"),
        (script("", skipped="no such tool"), 60, "skipped", "no such tool"),
        (script(""), 1, "skipped", "the eight minutes were over"),
        (script('print(\'{"status": "skipped", "detail": "one GPU"}\')', verdict=True), 60, "skipped", "one GPU"),
        (
            script('print(\'{"status": "passed", "detail": ""}\\nout of bounds\'); exit(9)', verdict=True),
            60,
            "failed",
            "out of bounds",
        ),
    ],
)
def test_a_step_ends_with_a_verdict(step: gpu_check.Step, left: float, status: str, detail: str):
    outcome = gpu_check.run(step, {}, left)
    assert outcome.status == status
    assert detail in outcome.detail


def test_writes_one_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    steps = [script("print('built')"), script("exit(3)")]
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: FAKE)
    monkeypatch.setattr(gpu_check, "plan", lambda out, tests: steps)
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    assert written["gpu"] == FAKE
    assert not written["passed"]
    assert [step["status"] for step in written["steps"]] == ["passed", "failed"]
    assert "Imaginary GPU" in capsys.readouterr().out


def test_plan_names_every_check(tmp_path: Path):
    names = [step.name for step in gpu_check.plan(tmp_path, False)]
    assert set(gpu_check.SECTIONS) == set(gpu.CHECKS)
    assert names[0] == "build"
    assert names[-1] == "benchmark"
    assert "tests" not in [step.name for step in gpu_check.plan(tmp_path, True)]


def test_agreement_runs_every_operator(capsys: pytest.CaptureFixture):
    assert "calls agree" in gpu.agreement(device="cpu")


def test_a_check_prints_its_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def wrong() -> str:
        raise AssertionError("three is not four")

    monkeypatch.setitem(gpu.CHECKS, "compiled", wrong)
    assert gpu.main("compiled") == 1
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert verdict == {"status": "failed", "detail": "AssertionError: three is not four"}

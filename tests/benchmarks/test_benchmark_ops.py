"""The benchmark's arithmetic, its memory meter, and its files."""

import json
import subprocess
import sys
import time
from pathlib import Path

import benchmark_ops
import pytest
import torch
from operators import benchmark, cases, measure, report, targets
from operators.names import OPERATORS

ROOT = Path(__file__).parent.parent.parent
ROW = {"op": "roi_align", "label": "a", "dtype": "float32", "layout": "contiguous", "pass": "forward", "device": "cpu"}


def test_every_operator_has_cases():
    assert {case.op for case in cases.CASES} == set(OPERATORS)
    assert {case.op for case in cases.CASES if case.quick} == set(OPERATORS)


def test_interleaved_times_are_medians_of_each():
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}
    times = measure.interleave(calls, "cpu", seconds=0.05, repeats=50)
    assert 0.02 <= times["slow"]["median"] < 0.04
    assert 0.002 <= times["fast"]["median"] < 0.01
    assert times["fast"]["runs"] > times["slow"]["runs"] >= 3
    assert times["slow"]["q1"] <= times["slow"]["median"] <= times["slow"]["q3"]


def test_cost_of_box_iou_is_that_of_its_answer():
    work = cases._box_iou(cases.Make("cpu", torch.float32, "contiguous", None))
    assert work.forward.bytes == 4 * (1000 * 4 + 5000 * 4 + 1000 * 5000)
    seconds, by = measure.limit(work, "forward", {"copy": 1e9, "float32": 1e12}, "float32")
    assert by == "bandwidth"
    assert seconds == pytest.approx(work.forward.bytes / 1e9)


def test_memory_of_a_call_is_seen():
    code = """
import torch
from operators import measure
measure.release_freed_buffers()
def call():
    return (torch.ones(10 * 2**18) * 2)[: 2**18].clone()  # two buffers of 10 MiB at once; returns 1 MiB
print(measure.extra_memory(call, "cpu") / 2**20)
"""
    settings = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(20, abs=2), done.stderr


def test_targets_are_judged_by_the_worst_row():
    rows = [{**ROW, "ratio": 20.0}, {**ROW, "ratio": 8.0, "label": "b"}, {**ROW, "op": "nms", "ratio": 1.0}]
    (verdict,) = targets.judge(rows)
    assert verdict["text"] == "roi_align vs torchvision, contiguous, forward"
    assert (verdict["value"], verdict["met"], verdict["by"]) == (8.0, False, 0.8)
    assert verdict["row"] == "roi_align b contiguous float32"


def test_targets_may_be_upper_limits_or_means():
    row = {**ROW, "op": "deform_conv2d", "layout": "channels_last", "ratio": 2.0, "over_conv2d": 1.0}
    rows = [row, {**row, "ratio": 8.0, "extra_bytes": 64 * 2**20}]
    found = {verdict["text"]: verdict for verdict in targets.judge(rows)}
    mean = found["deform_conv2d vs torchvision, mean, forward"]
    assert mean["value"] == pytest.approx(4)
    assert mean["by"] == pytest.approx(1.6)
    assert found["deform_conv2d: time over torch's conv2d, channels_last, forward"]["by"] == pytest.approx(1.6)
    assert not found["deform_conv2d: extra memory in MiB, forward"]["met"]


def test_unknown_operator_is_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        benchmark_ops.main(["--ops", "nmx"])
    assert "no operator nmx" in capsys.readouterr().err


def test_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(benchmark, "memory", lambda arguments: {})
    monkeypatch.setattr(measure, "rates", lambda device, dtypes: {"copy": 1e10, "float32": 1e11})
    settings = ["--ops", "box_iou", "--quick", "--seconds", "0.01", "--repeats", "3", "--threads", "1"]
    out = tmp_path / "found.json"
    assert benchmark_ops.main([*settings, "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    (row,) = results["rows"]
    assert row["of_limit"] == pytest.approx(row["limit"] / row["times"]["ours"]["median"])
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "box_iou" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures of cpu: begin -->\nold\n<!-- figures of cpu: end -->\nafter\n")
    report.write_page(results, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "|box_iou|1000x5000|" in text


def test_page_without_a_place_for_figures_is_refused(tmp_path: Path):
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="has no place for figures"):
        report.write_page({"machine": {"kind": "cpu"}}, tmp_path / "page.md")


def test_benchmarks_page_has_places_for_both_devices():
    text = (ROOT / "BENCHMARKS.md").read_text()
    for kind in ("cpu", "cuda"):
        assert f"<!-- figures of {kind}: begin -->" in text

"""benchmarks/benchmark_detector.py measures small images, and goes on where it stopped."""

import json
import sys

import benchmark_detector
import pytest

pytestmark = pytest.mark.slow


def test_rows(tmp_path, monkeypatch, capsys):
    file = tmp_path / "found.json"
    words = ["--sizes", "64x96", "--threads", "1", "--rounds", "2", "--json", str(file)]
    for what in ("inference", "bf16", "parts"):
        monkeypatch.setattr(sys, "argv", ["benchmark_detector.py", *words, "--only", what])
        assert benchmark_detector.main() == 0
    found = json.loads(file.read_text())
    assert list(found) == ["inference 64x96 1t", "bf16 64x96 1t", "parts 64x96 1t"]
    assert found["inference 64x96 1t"]["bound"] > 1
    assert found["inference 64x96 1t"]["same"] > 0
    assert min(found["inference 64x96 1t"]["bytes"].values()) > 0
    assert {"backbone", "neck", "rpn", "pool", "head", "NMS", "data"} <= found["parts 64x96 1t"]["inference"].keys()
    printed = capsys.readouterr().out
    assert printed.count("measuring") == 3  # each row once
    assert "backbone, backward" in printed

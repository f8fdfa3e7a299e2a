"""benchmarks/benchmark_rois.py: every detector of its table, few RoIs of a small image, a file and a plot."""

import json
import sys

import benchmark_rois
import pytest

pytestmark = pytest.mark.slow


def test_rois(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rois.json"
    words = ["--rois", "5", "10", "--size", "64", "96", "--rounds", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["benchmark_rois.py", *words])
    assert benchmark_rois.main() == 0
    found = json.loads(file.read_text())
    assert found.keys() == benchmark_rois.DETECTORS.keys()
    assert all(list(times) == ["5", "10"] for times in found.values())
    assert file.with_suffix(".svg").read_text().startswith("<svg")
    assert benchmark_rois.main() == 0
    assert capsys.readouterr().out.count("measuring") == 3  # nothing twice

"""The quickstart, with runs that take no time."""

import json
from pathlib import Path

from visionlab.studies import quickstart


def test_the_quickstart_gives_both_arms_the_same_but_the_weights(tmp_path, monkeypatch, capsys):
    asked = []

    def execute_all(runs):
        asked.extend(runs)
        for run, ap in zip(runs, (None, 0.25, 0.125), strict=True):
            (Path(run.out) / "eval").mkdir(parents=True)
            metrics = {"step": 1, "metrics": {"AP": ap, "AP50": ap}}
            (Path(run.out) / "eval" / "step_00000001.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(quickstart, "execute_all", execute_all)
    monkeypatch.setattr(quickstart, "write_side_by_side", lambda folders, path, title: path)
    assert quickstart.quickstart(tmp_path) is None
    pretrain, pretrained, random = asked
    assert pretrained.weights == str(Path(pretrain.out) / "backbone.safetensors")
    assert random.weights is None
    differing = {"out", "weights", "optimizer"}  # each arm has the learning rate that is best for it
    assert pretrained.model_dump(exclude=differing) == random.model_dump(exclude=differing)
    assert pretrain.data.model_dump() == random.data.model_dump()
    printed = capsys.readouterr().out
    assert "25.0" in printed
    assert "12.5" in printed
    assert str(tmp_path / "report.html") in printed


def test_a_quickstart_that_a_signal_stopped_has_its_exit_status(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "execute_all", lambda runs: 143)
    assert quickstart.quickstart(tmp_path) == 143

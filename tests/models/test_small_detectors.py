"""Every small detector of the comparison trains, goes on after a crash as if there had been none, and predicts."""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import read_file, read_rows, visionlab

from visionlab.tasks.detect import DetectTask

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "compare" / "detectors").glob("*.yaml"))
TINY = [
    *("data.labelled=6", "data.validation=4", "data.image_size=64", "transform.short_side=64", "transform.max_size=64"),
    *("loader.batch_size=2", "train.steps=4", "schedule.warmup_steps=1", "checkpoints.every=2", "log.every=1"),
]


class Crash(RuntimeError):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_resumes_and_predicts(config, tmp_path, no_report, monkeypatch):
    whole, crashed, data = tmp_path / "whole", tmp_path / "crashed", tmp_path / "data"

    def train(out: Path) -> int:
        return visionlab("train", config, *TINY, f"data.root={data}", f"out={out}")

    assert train(whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr(DetectTask, "after_step", crash_in_the_third)
        with pytest.raises(Crash):
            train(crashed)
    assert train(crashed) == 0
    assert read_rows(crashed) == read_rows(whole)
    expected, found = (read_file(out / "detector.safetensors")[1] for out in (whole, crashed))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    assert visionlab("predict", whole, data / "val", "--out", tmp_path / "found", "--threshold", "0") == 0
    assert len(list((tmp_path / "found").rglob("*.jpg"))) == 4
    assert json.loads((tmp_path / "found" / "results.json").read_text())


def crash_in_the_third(task: DetectTask, step: int, steps: int) -> None:
    if step == 2:
        raise Crash

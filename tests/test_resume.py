"""A run that is started again: as if it had never stopped, or refused and nothing is touched."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny_runs import DETECT, OTHER_HEADS, PRETRAIN, read_file, read_rows, visionlab, write_config

from visionlab import run
from visionlab.data.synthetic import write_synthetic
from visionlab.tasks.detect import DetectTask
from visionlab.tasks.pretrain import PretrainTask

RUNS = {"pretrain": PRETRAIN, "detect": DETECT, **{head: DETECT | parts for head, parts in OTHER_HEADS.items()}}
TASKS = {"pretrain": PretrainTask, "detect": DetectTask}
STEPS = 6
SETTINGS = {  # a checkpoint after 2 and 4 steps, rows of 3 steps, so that a row spans a checkpoint
    "pretrain": {"train": {"steps": STEPS, "ema_decay": 0.9}, "optimizer": {"name": "adamw", "lr": 0.001}},
    "detect": {"train": {"steps": STEPS, "evaluate_every": 3, "clip_norm": 1.0}},
}
COMMON = {"checkpoints": {"every": 2}, "log": {"every": 3}, "schedule": {"name": "cosine", "warmup_steps": 2}}


def trained(folder: Path, name: str, *overrides: str) -> int:
    config = RUNS[name]
    return visionlab("train", write_config(folder, config, name, **COMMON, **SETTINGS[config["task"]]), *overrides)


@pytest.fixture(scope="module", params=["pretrain", "detect"])
def uninterrupted(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", lambda folder: folder / "report.html")
        assert trained(folder, request.param) == 0
    return folder / request.param


class Crash(RuntimeError):
    pass


def dying(after_step, at: dict[int, str]):
    """Return ``Task.after_step`` with accidents in it, each of which happens once."""

    def after(self, step, steps):
        after_step(self, step, steps)
        accident = at.pop(step, None)
        if accident == "crash":
            raise Crash
        if accident:
            os.kill(os.getpid(), signal.SIGTERM)

    return after


@pytest.mark.parametrize("uninterrupted", RUNS, indirect=True)
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_that_was_killed_twice_equals_one_that_was_not(uninterrupted, workers, tmp_path, no_report, monkeypatch):
    """Bit for bit: weights, rows and evaluations. The uninterrupted run read its images without workers."""
    name = uninterrupted.name
    task = TASKS[RUNS[name]["task"]]
    accidents = {2: "crash", 4: "SIGTERM"}
    monkeypatch.setattr(task, "after_step", dying(task.after_step, accidents))
    words = (name, f"loader.workers={workers}")
    with pytest.raises(Crash):
        trained(tmp_path, *words)
    assert sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) == ["step_00000002.pt"]
    assert trained(tmp_path, *words) == 128 + signal.SIGTERM
    assert not (tmp_path / name / "backbone.safetensors").exists()
    assert trained(tmp_path, *words, "checkpoints.keep=1") == 0
    assert not accidents

    assert read_rows(tmp_path / name) == read_rows(uninterrupted)
    for path in uninterrupted.glob("*.safetensors"):
        expected, found = read_file(path), read_file(tmp_path / name / path.name)
        assert found[0] == expected[0]
        assert found[1].keys() == expected[1].keys()
        assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())
    measured = sorted((uninterrupted / "eval").iterdir())
    assert [path.name for path in sorted((tmp_path / name / "eval").iterdir())] == [path.name for path in measured]
    assert all((tmp_path / name / "eval" / path.name).read_bytes() == path.read_bytes() for path in measured)


def test_other_settings_are_refused_and_nothing_is_touched(uninterrupted, capsys):
    kept = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    assert trained(uninterrupted.parent, uninterrupted.name, "train.clip_norm=3", "seed=1") == 2
    errors = capsys.readouterr().err
    before = "None" if uninterrupted.name == "pretrain" else "1.0"
    assert f"(seed was 0, is 1; train.clip_norm was {before}, is 3.0)" in errors
    assert errors.count("\n") == 1
    assert {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()} == kept


def test_data_may_lie_elsewhere_at_the_next_start(uninterrupted, tmp_path, capsys, no_report):
    out = tmp_path / uninterrupted.name
    shutil.copytree(uninterrupted, out)
    shutil.copytree(uninterrupted.parent / "data", tmp_path / "data")
    assert trained(tmp_path, uninterrupted.name) == 0
    assert f"going on after step {STEPS}" in capsys.readouterr().out


@pytest.fixture
def labelled(tmp_path):
    """A finished run on a COCO json of its own, and how to start it again."""
    write_synthetic(tmp_path / "data", unlabelled=1, labelled=6, validation=2, image_size=64)
    files = {"annotations": "annotations/train.json", "images": "train"}
    files |= {"val_annotations": "annotations/val.json", "val_images": "val"}
    config = write_config(tmp_path, DETECT, data={"name": "coco", "root": str(tmp_path / "data"), **files})
    assert visionlab("train", config) == 0
    return config


def exchange_ids(content):
    first, second = content["categories"][:2]
    first["id"], second["id"] = second["id"], first["id"]


def add_class(content):
    content["categories"].append({"id": 99, "name": "new"})
    content["annotations"][0]["category_id"] = 99


def lose_image(content):
    lost = content["images"].pop()["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != lost]


@pytest.mark.parametrize(
    ("parts", "change", "words"),
    [
        ("train val", exchange_ids, "train: classes were [beast, bird"),
        ("train val", add_class, "cart, new]"),
        ("train", lambda content: content["annotations"].pop(), "train: boxes were"),
        ("val", lambda content: content["annotations"].pop(), "val: boxes were"),
        ("train", lambda content: content["annotations"][0].update(bbox=[1, 1, 9, 9]), "train: names of images"),
        ("val", lose_image, "val: images were 2, are 1"),
    ],
)
def test_other_data_are_refused_and_nothing_is_touched(labelled, parts, change, words, tmp_path, capsys, no_report):
    for part in parts.split():
        file = tmp_path / "data" / "annotations" / f"{part}.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    kept = {path: path.read_bytes() for path in (tmp_path / "detect").rglob("*") if path.is_file()}
    assert visionlab("train", labelled) == 2
    errors = capsys.readouterr().err
    assert "holds a run with other data (" in errors
    assert words in errors
    assert errors.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "detect").rglob("*") if path.is_file()} == kept


def test_classes_exchanged_by_another_file_are_refused(test_data, tmp_path, capsys, no_report):
    case = test_data / "cases" / "coco" / "class_swap"
    data = {"name": "coco", "root": str(case), "annotations": "first.json", "images": "images"}
    config = write_config(tmp_path, DETECT, data=data)
    assert visionlab("train", config) == 0
    kept = (tmp_path / "detect" / "detector.safetensors").read_bytes()
    assert visionlab("train", config, "data.annotations=second.json") == 2
    errors = capsys.readouterr().err
    assert f"{case / 'second.json'}: train: classes were [red, blue], are [blue, red]" in errors
    assert (tmp_path / "detect" / "detector.safetensors").read_bytes() == kept


MORE = {"constant": {}, "multistep": {"milestones": [2]}, "cosine": {"restart_every": 2, "warmup_steps": 1}}


@pytest.mark.parametrize("name", MORE)
def test_a_finished_run_may_be_given_more_steps(name, tmp_path, no_report):
    """Where the schedule does not depend on their number; it then equals a run that had them from the start."""
    schedule = {"name": name, **MORE[name]}
    config = write_config(tmp_path, PRETRAIN, schedule=schedule, train={"steps": 3, "ema_decay": 0.9})
    assert visionlab("train", config) == 0
    assert visionlab("train", config, "train.steps=5") == 0
    assert visionlab("train", config, "train.steps=5", f"out={tmp_path / 'whole'}") == 0
    found, expected = (read_file(tmp_path / out / "backbone.safetensors") for out in ("pretrain", "whole"))
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())


@pytest.mark.parametrize(("config", "words"), [(PRETRAIN, "weights="), (DETECT, "detector=")])
def test_more_steps_that_would_change_those_done_are_refused_with_a_way_on(config, words, tmp_path, capsys, no_report):
    path = write_config(tmp_path, config, schedule={"name": "cosine"})
    assert visionlab("train", path) == 0
    kept = {path: path.read_bytes() for path in (tmp_path / config["task"]).rglob("*") if path.is_file()}
    assert visionlab("train", path, "train.steps=5") == 2
    errors = capsys.readouterr().err
    assert "train.steps was 3, is 5" in errors
    assert f"new folder with {words}{tmp_path / config['task']}" in errors
    assert errors.count("\n") == 1
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_method_that_looks_at_the_number_of_steps_is_given_no_more(tmp_path, capsys, no_report):
    pretext = {"name": "moco", "image_size": 32, "queue_size": 16, "hidden_dim": 8, "projection_dim": 8}
    for final, status in ((None, 0), (1.0, 2)):
        config = write_config(tmp_path, PRETRAIN, f"moco_{final}", pretext={**pretext, "final_momentum": final})
        assert visionlab("train", config) == 0
        assert visionlab("train", config, "train.steps=4") == status
        assert visionlab("train", config, f"train.steps={4 if status == 0 else 3}") == 0
    assert "train.steps was 3, is 4; a run can be given more" in capsys.readouterr().err


def test_fewer_steps_are_refused(tmp_path, capsys, no_report):
    config = write_config(tmp_path, PRETRAIN)
    assert visionlab("train", config) == 0
    assert visionlab("train", config, "train.steps=2") == 2
    assert "train.steps was 3, is 2" in capsys.readouterr().err


def test_a_run_from_the_start_drops_the_evaluations_of_the_one_before(tmp_path, no_report):
    config = write_config(tmp_path, DETECT)
    assert visionlab("train", config) == 0
    shutil.rmtree(tmp_path / "detect" / "checkpoints")
    assert visionlab("train", config, "train.steps=2") == 0
    names = sorted(path.name for path in (tmp_path / "detect" / "eval").iterdir())
    assert names == ["step_00000002.json", "step_00000002_results.json"]
    assert [row["step"] for row in read_rows(tmp_path / "detect")] == [1, 2, 2]

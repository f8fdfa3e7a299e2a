"""The life of a run: from images to a detector, and with faulty input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import DETECT, PRETRAIN, read_file, read_rows, visionlab, write_config

from visionlab import load_detector, run
from visionlab.config import build
from visionlab.data.images import read_image
from visionlab.data.synthetic import write_synthetic
from visionlab.eval.several_views import SeveralViews
from visionlab.inference import Predictor
from visionlab.models.backbone import Backbone
from visionlab.models.weights import save_backbone
from visionlab.structures import Detections

ROOT = Path(__file__).parents[1]


# --- from images to a detector ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the whole path was run: pretrain, then detect from its backbone."""
    return tmp_path_factory.mktemp("path")


@pytest.fixture(scope="module")
def in_memory(folder):
    """The detector as its run left it in memory."""
    configs = (
        write_config(folder, PRETRAIN),
        write_config(folder, DETECT, weights=str(folder / "pretrain" / "backbone.safetensors")),
    )
    built = []
    make = build.detector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "detector", lambda *arguments: built.append(make(*arguments)) or built[0])
        assert visionlab("train", *configs) == 0
    return built[0]


def test_a_pretraining_run_leaves_what_a_report_needs(folder, in_memory):
    rows = read_rows(folder / "pretrain")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] == row["losses/rotation"] > 0 for row in rows)
    environment = json.loads((folder / "pretrain" / "environment.json").read_text())
    assert environment["task"] == "pretrain"
    assert environment["versions"]["torch"] == torch.__version__
    with Image.open(folder / "pretrain" / "pictures" / "views.jpg") as views:
        assert min(views.size) >= 32
    report = (folder / "pretrain" / "report.html").read_text()
    assert "effective" in report
    assert json.loads((folder / "pretrain" / "report.json").read_text())["weights"] == ["backbone.safetensors"]


def test_a_detector_run_leaves_metrics_results_and_pictures(folder, in_memory):
    out = folder / "detect"
    measured = json.loads((out / "eval" / "step_00000003.json").read_text())
    assert measured["step"] == 3
    assert read_rows(out)[-1]["eval/AP"] == measured["metrics"]["AP"]
    assert {row["image_id"] for row in json.loads((out / "eval" / "step_00000003_results.json").read_text())}
    assert len(list((out / "pictures").glob("val_*.jpg"))) == 4
    assert json.loads((out / "report.json").read_text())["evaluation"]["metrics"]["AP"] == measured["metrics"]["AP"]


def test_a_loaded_detector_finds_what_the_run_found(folder, in_memory):
    """The run's results are in pixels of the files, 64 wide; the detector saw them 48 wide."""
    truth = json.loads((folder / "data" / "annotations" / "val.json").read_text())
    files = {image["id"]: folder / "data" / "val" / image["file_name"] for image in truth["images"]}
    rows = json.loads((folder / "detect" / "eval" / "step_00000003_results.json").read_text())
    categories = [category["id"] for category in truth["categories"]]
    predictor = load_detector(folder / "detect")
    assert predictor.classes == [category["name"] for category in truth["categories"]]
    found = predictor(list(files.values()))
    assert max(part.boxes.max().item() for part in found) > 48
    for image_id, part in zip(files, found, strict=True):
        assert isinstance(part, Detections)
        mine = [row for row in rows if row["image_id"] == image_id]
        assert len(part) == len(mine) > 10
        assert (part.scores.diff() <= 0).all()
        sides = part.boxes.clone()
        sides[:, 2:] -= sides[:, :2]
        np.testing.assert_allclose(sides, [row["bbox"] for row in mine], atol=1e-3)
        np.testing.assert_allclose(part.scores, [row["score"] for row in mine], atol=1e-5)
        assert [categories[label] for label in part.labels] == [row["category_id"] for row in mine]


def test_evaluation_in_several_views_finds_what_a_predictor_of_these_views_finds(folder, in_memory, tmp_path):
    views = {"flip": True, "sizes": [32, 64]}
    config = write_config(folder, DETECT, "views", out=str(tmp_path), evaluate={"augment": views})
    assert visionlab("evaluate", config, f"detector={folder / 'detect'}") == 0
    rows = json.loads((tmp_path / "evaluate" / "eval" / "step_00000000_results.json").read_text())
    plain = json.loads((folder / "detect" / "eval" / "step_00000003_results.json").read_text())
    assert [row["score"] for row in rows] != [row["score"] for row in plain]
    truth = json.loads((folder / "data" / "annotations" / "val.json").read_text())
    predictor = load_detector(folder / "detect", augment=SeveralViews(**views))
    files = [folder / "data" / "val" / image["file_name"] for image in truth["images"]]
    for image, part in zip(truth["images"], predictor(files), strict=True):
        mine = [row for row in rows if row["image_id"] == image["id"]]
        assert len(part) == len(mine) > 10
        sides = part.boxes.clone()
        sides[:, 2:] -= sides[:, :2]
        np.testing.assert_allclose(sides, [row["bbox"] for row in mine], atol=1e-3)
        np.testing.assert_allclose(part.scores, [row["score"] for row in mine], atol=1e-5)


def test_a_detector_from_its_file_is_the_one_in_memory(folder, in_memory):
    images = [read_image(file) for file in sorted((folder / "data" / "val").iterdir())]
    loaded = load_detector(folder / "detect" / "detector.safetensors")
    for ours, theirs in zip(loaded(images), Predictor(in_memory, loaded.resize)(images), strict=True):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_finished_run_is_left_as_it_is(folder, in_memory, capsys):
    kept = {path: path.read_bytes() for path in (folder / "detect").rglob("*") if path.is_file()}
    assert visionlab("train", folder / "detect.yaml") == 0
    assert "going on after step 3 of 3" in capsys.readouterr().out
    for path, content in kept.items():
        if path.name == "detector.safetensors":
            assert path.read_bytes() == content
        elif path.name not in ("environment.json", "report.html", "report.json"):
            assert path.read_bytes() == content, path


@pytest.mark.parametrize(("metrics", "name"), [("coco", "AP"), ("voc07", "mAP")])
def test_the_best_detector_is_kept(metrics, name, tmp_path, no_report, monkeypatch):
    """The second of three evaluations is the best; the file holds the weights of that step."""
    states = []

    def measure(run, detector, *_):
        states.append({name: value.clone() for name, value in detector.state_dict().items()})
        scores = {name: [0.1, 0.3, 0.2][len(states) - 1], "AP50": None}
        return type("Metrics", (), {"summary": lambda self: scores})()

    monkeypatch.setattr(run, "_measure", measure)
    config = write_config(tmp_path, DETECT)
    assert visionlab("train", config, "train.evaluate_every=1", f"evaluate.metrics={metrics}") == 0
    description, kept = read_file(tmp_path / "detect" / "detector.safetensors")
    assert json.loads(description["provenance"])["steps"] == 2
    assert all(torch.equal(kept[name], value) for name, value in states[1].items())
    assert any(not torch.equal(states[1][name], value) for name, value in states[2].items())


def test_without_validation_images_the_last_detector_is_kept(tmp_path, folder, in_memory, no_report):
    data = {"name": "coco", "root": str(folder / "data"), "annotations": "annotations/train.json", "images": "train"}
    assert visionlab("train", write_config(tmp_path, DETECT, data=data)) == 0
    assert load_detector(tmp_path / "detect")(sorted((folder / "data" / "val").iterdir())[:1])
    assert not any((tmp_path / "detect" / "eval").iterdir())


def test_a_detector_may_start_from_another_with_other_classes(folder, in_memory, tmp_path, capsys, no_report):
    files = {"annotations": "annotations/train.json", "images": "train"}
    data = {"name": "coco", "root": str(folder / "data"), **files, "classes": ["snail", "beast"]}
    config = write_config(tmp_path, DETECT, data=data)
    assert visionlab("train", config, f"detector={folder / 'detect'}", "optimizer.lr=1e-30") == 0
    assert "classes taken over by name 2 (snail, beast)" in capsys.readouterr().out
    _, theirs = read_file(folder / "detect" / "detector.safetensors")
    _, ours = read_file(tmp_path / "detect" / "detector.safetensors")
    rows = [in_memory.classes.index(name) for name in ("snail", "beast")] + [len(in_memory.classes)]
    torch.testing.assert_close(ours["head.classes.weight"], theirs["head.classes.weight"][rows], rtol=0, atol=1e-20)
    torch.testing.assert_close(ours["neck.output.0.weight"], theirs["neck.output.0.weight"], rtol=0, atol=1e-20)
    assert visionlab("train", config, f"detector={folder / 'detect'}", "weights=other.pth", "--check") == 2
    assert "weights: expected either weights or detector" in capsys.readouterr().err


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "loss"), [(PRETRAIN, "rotation"), (DETECT, "rpn/objectness")])
def test_a_loss_that_is_not_finite_ends_the_run(config, loss, tmp_path, capsys, no_report):
    assert visionlab("train", write_config(tmp_path, config), "optimizer.lr=1e30", "train.clip_norm=null") == 2
    errors = capsys.readouterr().err
    assert f"the loss {loss} is nan in step 2; images: {tmp_path / 'data'}" in errors
    assert errors.count("\n") == 1
    last = read_rows(tmp_path / config["task"])[-1]
    assert loss in last["error"]
    assert len(last["files"]) == config["loader"]["batch_size"]


def test_an_encoder_that_is_dead_is_called_collapsed(tmp_path, capsys, no_report):
    backbone = Backbone(**PRETRAIN["backbone"])
    torch.nn.utils.vector_to_parameters(
        torch.zeros(sum(p.numel() for p in backbone.parameters())), backbone.parameters()
    )
    save_backbone(backbone, tmp_path / "dead.safetensors", provenance={})
    config = write_config(tmp_path, PRETRAIN)
    assert visionlab("train", config, f"weights={tmp_path / 'dead.safetensors'}") == 0
    assert "WARNING: the representation has COLLAPSED" in capsys.readouterr().out
    rows = read_rows(tmp_path / "pretrain")
    assert sum("COLLAPSED" in row.get("warning", "") for row in rows) == 1
    assert all(row["meters/embedding_std"] == 0 for row in rows if "loss" in row)

    assert visionlab("train", config, f"out={tmp_path / 'alive'}") == 0
    assert "COLLAPSED" not in capsys.readouterr().out
    assert all(row["meters/embedding_std"] > 0.1 for row in read_rows(tmp_path / "alive"))


@pytest.fixture
def faulty(tmp_path) -> Path:
    """A folder of eight images; of one half is missing, and one is text."""
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(images / f"{number}.jpg")
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:1000])
    (images / "5.jpg").write_text("not an image")
    return images


@pytest.mark.parametrize("policy", ["repair", "skip"])
def test_faulty_images_are_named_and_the_run_goes_on(policy, faulty, tmp_path, capsys, caplog, no_report):
    data = {"name": "folder", "root": str(faulty), "policy": policy}
    assert visionlab("train", write_config(tmp_path, PRETRAIN, data=data)) == 0
    assert f"data: {faulty / '5.jpg'}: unreadable-file" in capsys.readouterr().out
    assert str(faulty / "3.jpg") in caplog.text
    assert read_file(tmp_path / "pretrain" / "backbone.safetensors")[0]["images"] == "7"


@pytest.mark.parametrize("name", ["3.jpg", "5.jpg"])
@pytest.mark.parametrize("workers", [0, 2])
def test_under_the_policy_fail_a_faulty_image_is_an_error(name, workers, faulty, tmp_path, capsys, no_report):
    (faulty / {"3.jpg": "5.jpg", "5.jpg": "3.jpg"}[name]).unlink()
    data = {"name": "folder", "root": str(faulty), "policy": "fail"}
    assert visionlab("train", write_config(tmp_path, PRETRAIN, data=data), f"loader.workers={workers}") == 2
    errors = capsys.readouterr().err
    assert str(faulty / name) in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("policy", ["repair", "skip"])
def test_no_odd_image_crashes_a_run(policy, test_data, tmp_path, no_report):
    data = {"name": "folder", "root": str(test_data / "odd_images"), "policy": policy}
    config = write_config(tmp_path, PRETRAIN, data=data, loader={"batch_size": 32, "workers": 0})
    assert visionlab("train", config, "train.steps=2") == 0


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("pretext", "norm"), [("rotation", "group"), ("simclr", "sync")])
def test_two_processes_under_torchrun_are_one(pretext, norm, tmp_path):
    """Pretrain and detect in one command: the losses of each step are those of a single process."""
    backbone = PRETRAIN["backbone"] | {"norm": norm}
    sections = {"pretext": {"name": pretext, "image_size": 32}, "backbone": backbone}
    detect = {"backbone": PRETRAIN["backbone"] | {"norm": "frozen"}}
    # More samples than there are candidates, so that processes sample different numbers of them.
    detect |= {part: DETECT[part] | {"samples_per_image": 4000} for part in ("rpn", "head")}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("one", "two"):
        weights = {"weights": str(tmp_path / name / "pretrain" / "backbone.safetensors")} if norm == "sync" else {}
        write_config(tmp_path / name, PRETRAIN, **sections)
        write_config(tmp_path / name, DETECT, **detect, **weights)
    assert visionlab("train", tmp_path / "one" / "pretrain.yaml", tmp_path / "one" / "detect.yaml") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["tools/train.py", str(tmp_path / "two" / "pretrain.yaml"), str(tmp_path / "two" / "detect.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("backbone: ") == done.stdout.count("detector: ") == 1
    assert "rror" not in done.stderr
    for task in ("pretrain", "detect"):
        one, two = read_rows(tmp_path / "one" / task), read_rows(tmp_path / "two" / task)
        assert [row["step"] for row in one] == [row["step"] for row in two]
        for ours, theirs in zip(one, two, strict=True):
            for key in (key for key in ours if key.startswith("loss")):
                # In float32 rounding grows from update to update; tests/pretext is strict, in float64.
                assert theirs[key] == pytest.approx(ours[key], rel=1e-3), (task, ours["step"], key)


@pytest.mark.parametrize("chosen", [["flower", "beast"], ["snail"]])
def test_evaluate_takes_over_the_classes_of_the_detector(tmp_path, chosen):
    write_synthetic(tmp_path / "data", unlabelled=1, labelled=6, validation=4, image_size=64)
    files = {"annotations": "annotations/train.json", "images": "train"}
    files |= {"val_annotations": "annotations/val.json", "val_images": "val"}
    data = {"name": "coco", "root": str(tmp_path / "data"), **files}
    config = write_config(tmp_path, DETECT, "some", data={**data, "classes": chosen}, out=str(tmp_path / "run"))
    assert visionlab("train", config) == 0
    whole = write_config(tmp_path, DETECT, "whole", data=data, out=str(tmp_path / "again"), weights="start.pth")
    assert visionlab("evaluate", whole, f"detector={tmp_path / 'run'}") == 0
    first = json.loads((tmp_path / "run" / "eval" / "step_00000003.json").read_text())
    again = json.loads((tmp_path / "again" / "evaluate" / "eval" / "step_00000000.json").read_text())
    assert list(first["per_class"]) == list(again["per_class"])
    assert first["metrics"] == pytest.approx(again["metrics"], nan_ok=True)

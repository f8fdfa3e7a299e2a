"""The protocol of a comparison: cells that are done once, what is held equal, and what the table says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_runs import DETECT, PRETRAIN, visionlab, write_config

from visionlab import run
from visionlab.data.synthetic import write_synthetic
from visionlab.eval.interval import Interval
from visionlab.models.weights import read_backbone
from visionlab.studies import compare
from visionlab.studies.compare import Measures
from visionlab.train.guard import NonFiniteError

METHODS = {
    "turns": {"name": "rotation", "image_size": 32},
    "views": {"name": "simclr", "image_size": 32, "hidden_dim": 8},
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for channel, name in ((0, "red"), (2, "blue")):
            (folder / part / name).mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 150, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 60
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    write_synthetic(folder / "boxes", unlabelled=1, labelled=6, validation=4, image_size=64)
    return folder


@pytest.fixture
def configs(tmp_path, data) -> list[Path]:
    images = {"name": "folder", "root": str(data / "train")}
    return [write_config(tmp_path, PRETRAIN, name, pretext=pretext, data=images) for name, pretext in METHODS.items()]


@pytest.fixture
def measures(data) -> Measures:
    return Measures(data / "train", data / "test", image_size=32, neighbors=3)


@pytest.fixture
def done(monkeypatch) -> list:
    """The runs that were executed."""
    runs = []

    def execute(each):
        runs.append(each)
        return run.execute(each)

    monkeypatch.setattr(compare, "execute", execute)
    return runs


def cells(out: Path) -> set[str]:
    return {path.stem for path in (out / "cells").glob("*-seed*.json")}


@pytest.mark.slow
def test_every_method_is_measured_beside_random_and_supervised(configs, data, measures, done, tmp_path, capsys):
    out = tmp_path / "out"
    boxes = {"name": "coco", "root": str(data / "boxes"), "annotations": "annotations/train.json", "images": "train"}
    boxes |= {"val_annotations": "annotations/val.json", "val_images": "val"}
    detect = write_config(tmp_path, DETECT, data=boxes)
    words = ["compare", *configs, "--train", data / "train", "--test", data / "test", "--out", out]
    words += ["--image-size", 32, "--neighbors", 3, "--roi", detect, "--detect", detect]
    assert visionlab(*words, "--seeds", 0, 1) == 0
    assert cells(out) == {f"{name}-seed{seed}" for name in ("random", "supervised", *METHODS) for seed in (0, 1)}
    assert not any((out / "runs").iterdir())
    assert len(list((out / "backbones").iterdir())) == 8
    cell = json.loads((out / "cells" / "turns-seed1.json").read_text())
    assert (cell["arm"], cell["seed"]) == ("turns", 1)
    assert list(cell["probe"]) == ["stride 4", "stride 8", "stride 16", "stride 32", "pooled"]
    assert set(cell["probe"]["pooled"]) == {"knn", "linear"}
    assert set(cell["roi"]["stride 4"]) == {"accuracy", "balanced"}
    assert set(cell["detection"]) == {"AP", "AP50"}
    assert cell["cost"]["seconds"] > 0
    assert cell["cost"]["images_per_second"] > 0
    assert cell["cost"]["megabytes"] is None or 0 <= cell["cost"]["megabytes"] < 20_000
    assert "cost" not in json.loads((out / "cells" / "random-seed0.json").read_text())

    table = (out / "compare.md").read_text()
    assert table in capsys.readouterr().out
    rows = {
        row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in table.splitlines() if row[:1] == "|"
    }
    assert list(rows) == ["method", "---", "random", "supervised", *METHODS]
    values = [json.loads((out / "cells" / f"turns-seed{seed}.json").read_text()) for seed in (0, 1)]
    column = rows["method"].index("linear, stride 8")
    linear = [value["probe"]["stride 8"]["linear"] for value in values]
    assert rows["turns"][column] == Interval.of(linear).text()
    assert rows["random"][rows["method"].index("minutes")] == "–"
    page = (out / "compare.html").read_text()
    assert page.count("<svg") == 4
    assert json.loads((out / "compare.json").read_text())["cells"]["turns"] == values

    done.clear()
    assert visionlab(*words, "--seeds", 0, 1) == 0
    assert done == []


def test_a_cell_is_done_once_and_a_missing_one_is_shown(configs, measures, done, tmp_path, capsys):
    out = tmp_path / "out"
    page = compare.compare(configs, out, measures, seeds=[0, 1], only=["turns"])
    assert cells(out) == {"turns-seed0", "turns-seed1"}
    assert [each.seed for each in done] == [0, 1]
    (out / "cells" / "turns-seed1.json").unlink()
    page = compare.compare(configs, out, measures, seeds=[0, 1], only=[])
    assert len(done) == 2
    rows = {row.split(" | ")[0].strip("| "): row for row in page.with_suffix(".md").read_text().splitlines()}
    assert rows["views"].count("missing") >= 5
    assert rows["views"].startswith("| views | 0 of 2 |")
    assert rows["random"].startswith("| random | 0 of 2 |")
    assert rows["turns"].startswith("| turns | 1 of 2 |")
    assert "missing" not in rows["turns"]
    compare.compare(configs, out, measures, seeds=[0, 1], only=["turns"])
    assert [each.seed for each in done] == [0, 1, 1]


@pytest.mark.slow
def test_the_same_cell_again_is_the_same_number(configs, measures, tmp_path):
    found = []
    for name in ("one", "two"):
        compare.compare(configs, tmp_path / name, measures, seeds=[3], only=["views", "random", "supervised"])
        texts = [json.loads(path.read_text()) for path in sorted((tmp_path / name / "cells").glob("*-seed3.json"))]
        found.append([cell["probe"] for cell in texts])
    assert found[0] == found[1]
    assert len({json.dumps(each) for each in found[0]}) == 3


def test_a_run_that_diverges_is_said_and_the_others_go_on(configs, measures, tmp_path, monkeypatch):
    def execute(each):
        if each.pretext.name == "simclr":
            raise NonFiniteError(7, "contrast", float("nan"), [])
        return run.execute(each)

    monkeypatch.setattr(compare, "execute", execute)
    page = compare.compare(configs, tmp_path / "out", measures, seeds=[0], only=["views", "turns"])
    rows = {row.split(" | ")[0].strip("| "): row for row in page.with_suffix(".md").read_text().splitlines()}
    assert rows["views"].startswith("| views | 0 of 1, 1 diverged | missing")
    assert rows["turns"].startswith("| turns | 1 | ")
    assert "the loss contrast is nan in step 7" in page.read_text()


def test_what_is_not_held_equal_is_refused(configs, measures, tmp_path):
    out = tmp_path / "out"
    config = yaml.safe_load(configs[1].read_text())
    for section, key, value in (("train", "steps", 5), ("loader", "batch_size", 2)):
        changed = config | {section: config[section] | {key: value}}
        configs[1].write_text(yaml.safe_dump(changed))
        with pytest.raises(
            ValueError, match=rf"^{section}.{key}: expected the same for all methods, got \d in turns, "
        ):
            compare.compare(configs, out, measures, seeds=[0])
    configs[1].write_text(yaml.safe_dump(config | {"weights": "x.safetensors"}))
    with pytest.raises(ValueError, match=r"^weights: expected none in views"):
        compare.compare(configs, out, measures, seeds=[0])
    configs[1].write_text(yaml.safe_dump(config | {"backbone": config["backbone"] | {"norm": "group"}}))
    compare.compare(configs, out, measures, seeds=[0], only=[])
    assert "norm: train, but views group." in (out / "compare.md").read_text()


@pytest.fixture
def grouped(configs, tmp_path, data) -> Path:
    """The config of a method whose encoder has GroupNorm."""
    images = {"name": "folder", "root": str(data / "train")}
    backbone = PRETRAIN["backbone"] | {"norm": "group"}
    return write_config(tmp_path, PRETRAIN, "grouped", pretext=METHODS["turns"], data=images, backbone=backbone)


def test_a_norm_that_one_method_needs_is_not_that_of_the_references(configs, grouped, measures, tmp_path):
    out = tmp_path / "out"
    compare.compare([grouped, *configs], out, measures, seeds=[0], only=["random", "supervised"])
    for name in compare.REFERENCE_METHODS:
        assert read_backbone(out / "backbones" / f"{name}-seed0.safetensors").norm == "train"
    assert "norm: train, but grouped group." in (out / "compare.md").read_text()
    protocol = json.loads((out / "cells" / "protocol.json").read_text())
    assert protocol["methods.supervised"] == protocol["methods.turns"] != protocol["methods.grouped"]


@pytest.mark.slow
def test_other_images_of_supervised_training_are_said(configs, data, measures, tmp_path):
    compare.compare(configs, tmp_path / "same", measures, seeds=[0], only=["supervised"])
    assert "other images" not in (tmp_path / "same" / "compare.md").read_text()
    shutil.copytree(data / "train", tmp_path / "other")
    (tmp_path / "other" / "red" / "0.png").unlink()
    (tmp_path / "other" / "red" / "1.png").unlink()
    (tmp_path / "other" / "red" / "1.png").symlink_to(data / "train" / "red" / "1.png")
    other = replace(measures, train=tmp_path / "other")
    compare.compare(configs, tmp_path / "out", other, seeds=[0], only=["supervised"])
    said = "supervised learned from other images than the methods: of its 15 files, 1 are among the methods' 16."
    assert said in (tmp_path / "out" / "compare.md").read_text()


@pytest.mark.slow
def test_a_detector_is_trained_from_encoders_of_either_norm(configs, grouped, data, measures, tmp_path):
    boxes = {"name": "coco", "root": str(data / "boxes"), "annotations": "annotations/train.json", "images": "train"}
    boxes |= {"val_annotations": "annotations/val.json", "val_images": "val"}
    detect = write_config(tmp_path, DETECT, data=boxes, backbone=PRETRAIN["backbone"] | {"frozen_stages": 1})
    measures = replace(measures, detect=detect)
    compare.compare([grouped, *configs], tmp_path / "out", measures, seeds=[0], only=["grouped", "random"])
    for name in ("grouped", "random"):
        cell = json.loads((tmp_path / "out" / "cells" / f"{name}-seed0.json").read_text())
        assert set(cell["detection"]) == {"AP", "AP50"}


def test_a_detector_that_cannot_be_is_refused_before_anything_is_trained(configs, measures, tmp_path, done):
    detect = write_config(tmp_path, DETECT, backbone=PRETRAIN["backbone"] | {"strides": [16, 32]})
    with pytest.raises(ValueError, match="anchor_sizes: expected 3 lists"):
        compare.compare(configs, tmp_path / "out", replace(measures, detect=detect), seeds=[0])
    assert done == []


def test_results_of_other_settings_are_not_mixed_in(configs, measures, data, tmp_path, done):
    out = tmp_path / "out"
    compare.compare(configs[:1], out, measures, seeds=[0], only=["turns"])
    compare.compare(configs, out, measures, seeds=[0], only=["turns"])  # a method may be added
    assert len(done) == 1
    with pytest.raises(
        ValueError, match=r"got another methods\.turns\.optimizer\.lr, methods\.supervised\.optimizer\.lr, .*; restore"
    ):
        compare.compare(configs, out, measures, seeds=[0], overrides=["optimizer.lr=0.5"])
    with pytest.raises(ValueError, match=r"got another measures\.image_size, measures\.neighbors; restore"):
        compare.compare(configs, out, Measures(data / "train", data / "test", image_size=16), seeds=[0])


def test_names_are_checked(configs, measures, tmp_path):
    with pytest.raises(
        ValueError, match=r"^expected config files of different names, none of them random or supervised"
    ):
        compare.compare([*configs, configs[0]], tmp_path / "out", measures, seeds=[0])
    with pytest.raises(ValueError, match=r"^only: expected some of random, supervised, turns, views, got viewss$"):
        compare.compare(configs, tmp_path / "out", measures, seeds=[0], only=["viewss"])
    detect = write_config(tmp_path, DETECT)
    with pytest.raises(ValueError, match=r"detect.yaml: expected a config with task pretrain, got detect$"):
        compare.compare([detect], tmp_path / "out", measures, seeds=[0])

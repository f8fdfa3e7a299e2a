"""The probe commands on generated images: tables, files, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import PRETRAIN, visionlab

from visionlab.data.synthetic import write_synthetic
from visionlab.models.backbone import Backbone
from visionlab.models.weights import save_backbone


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(Backbone(**PRETRAIN["backbone"]), path, provenance={"method": "none"})
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two folders of images in two classes, one mostly red and one mostly blue."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for channel, name in ((0, "red"), (2, "blue")):
            (folder / part / name).mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(0, 120, (40, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def test_probe_tells_classes_apart_at_every_level(weights, images, tmp_path, capsys):
    folders = ["--train", images / "train", "--test", images / "test", "--device", "cpu"]
    sizes = ["--image-size", 32, "--neighbors", 5, "--random", 2, "--out", tmp_path / "out" / "probe.json"]
    assert visionlab("probe", weights, *folders, *sizes) == 0
    result = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert result["images"] == [24, 24]
    assert result["classes"] == 2
    assert [len(result[arm]) for arm in ("trained", "random")] == [1, 2]
    assert list(result["trained"][0]) == ["stride 4", "stride 8", "stride 16", "stride 32", "pooled"]
    assert result["trained"][0]["stride 4"] == {"knn": 1.0, "linear": 1.0}
    assert "stride 32" in capsys.readouterr().out
    assert visionlab("probe", weights, *folders, *sizes) == 0
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == result


def test_labels_are_drawn_by_seeds(weights, images, tmp_path, capsys):
    folders = ["--train", images / "train", "--test", images / "test", "--device", "cpu", "--image-size", 32]
    few = ["--labels-per-class", 3, "--seeds", 0, 1, 2, "--neighbors", 3, "--random", 0]
    assert visionlab("probe", weights, *folders, *few, "--out", tmp_path / "probe.json") == 0
    assert len(json.loads((tmp_path / "probe.json").read_text())["trained"]) == 3
    assert visionlab("probe", weights, *folders, "--seeds", 0, 1) == 2
    assert "seeds: no effect without labels_per_class" in capsys.readouterr().err


def test_roi_probe_measures_every_level(weights, tmp_path, capsys):
    write_synthetic(tmp_path, unlabelled=1, labelled=6, validation=4, image_size=64)
    data = []
    for arm, json_name, folder in (("--train", "train.json", "train"), ("--test", "val.json", "val")):
        data += [arm, tmp_path / "annotations" / json_name, tmp_path / folder]
    sizes = ["--short-side", 64, "--max-size", 64, "--random", 1, "--device", "cpu"]
    assert visionlab("roi-probe", weights, *data, *sizes, "--out", tmp_path / "roi.json") == 0
    result = json.loads((tmp_path / "roi.json").read_text())
    assert list(result["trained"][0]) == ["stride 4", "stride 8", "stride 16", "stride 32"]
    assert all(0 <= value <= 1 for level in result["trained"][0].values() for value in level.values())
    assert min(result["boxes"]) > 3
    assert 1 / 6 <= result["largest_class"] <= 1
    assert "boxes of 6 classes" in " ".join(capsys.readouterr().out.split())


def test_other_files_are_refused(tmp_path, images, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert visionlab("probe", tmp_path / "x.safetensors", "--train", images / "train", "--test", images / "test") == 2
    assert "expected a safetensors file" in capsys.readouterr().err

"""The probe commands on generated images: tables, files, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import PRETRAIN, visionlab

from visionlab.data.class_folder import ClassFolder
from visionlab.data.synthetic import write_synthetic
from visionlab.models.backbone import Backbone
from visionlab.models.weights import save_backbone
from visionlab.studies.encoder_probes import probe_folder


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
    assert result["intervals"]["trained"]["pooled"]["knn"]["half_width"] is None
    assert result["intervals"]["random"]["stride 4"]["knn"] == {"mean": 1.0, "half_width": 0.0}
    assert list(result["trained"][0]) == ["stride 4", "stride 8", "stride 16", "stride 32", "pooled"]
    assert result["trained"][0]["stride 4"] == {"knn": 1.0, "linear": 1.0}
    assert "stride 32" in capsys.readouterr().out
    assert visionlab("probe", weights, *folders, *sizes) == 0
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == result


def test_labels_are_drawn_by_seeds(weights, images, tmp_path, capsys):
    folders = ["--train", images / "train", "--test", images / "test", "--device", "cpu", "--image-size", 32]
    few = ["--labels-per-class", 3, "--seeds", 0, 1, 2, "--neighbors", 3, "--random", 0]
    assert visionlab("probe", weights, *folders, *few, "--out", tmp_path / "probe.json") == 0
    result = json.loads((tmp_path / "probe.json").read_text())
    [draws], [scores] = result["draws"]["trained"], result["trained"]
    knn = [draw["stride 32"]["knn"] for draw in draws]
    assert len(set(knn)) > 1
    assert scores["stride 32"]["knn"] == pytest.approx(sum(knn) / 3)
    expected = {"mean": pytest.approx(sum(knn) / 3), "half_width": pytest.approx(half_width(knn))}
    assert result["intervals"]["trained"]["stride 32"]["knn"] == expected
    assert "random" not in result["intervals"]
    assert visionlab("probe", weights, *folders, "--seeds", 0, 1) == 2
    assert "seeds: no effect without labels_per_class" in capsys.readouterr().err


def half_width(samples: list[float]) -> float:
    """Return half of the Student-t 95 % interval of two or three samples, by the tables' quantile."""
    n, mean = len(samples), sum(samples) / len(samples)
    variance = sum((each - mean) ** 2 for each in samples) / (n - 1)
    return {2: 12.7062, 3: 4.30265}[n] * (variance / n) ** 0.5


def test_the_interval_is_over_encoders_whose_draws_are_averaged(weights, images, tmp_path, capsys):
    torch.manual_seed(1)
    save_backbone(Backbone(**PRETRAIN["backbone"]), tmp_path / "b.safetensors", provenance={})
    folders = ["--train", images / "train", "--test", images / "test", "--device", "cpu", "--image-size", 32]
    few = ["--labels-per-class", 2, "--seeds", 0, 1, 2, "--neighbors", 3, "--random", 1]
    both = [weights, tmp_path / "b.safetensors"]
    assert visionlab("probe", *both, *folders, *few, "--out", tmp_path / "probe.json") == 0
    result = json.loads((tmp_path / "probe.json").read_text())
    found = result["intervals"]["trained"]["stride 32"]["linear"]
    draws = [[draw["stride 32"]["linear"] for draw in encoder] for encoder in result["draws"]["trained"]]
    means = [sum(each) / 3 for each in draws]
    assert [len(each) for each in draws] == [3, 3]
    assert means[0] != means[1]
    assert found == {"mean": pytest.approx(sum(means) / 2), "half_width": pytest.approx(half_width(means), rel=1e-4)}
    single = [draw["stride 32"]["linear"] for draw in result["draws"]["random"][0]]
    assert result["intervals"]["random"]["stride 32"]["linear"]["mean"] == pytest.approx(sum(single) / 3)
    assert "2 trained, 1 random" in " ".join(capsys.readouterr().out.split())


def test_any_function_of_images_is_probed(images):
    shapes = []

    def colors(pixels: torch.Tensor) -> torch.Tensor:
        shapes.append((tuple(pixels.shape), pixels.dtype))
        return pixels.float().mean((2, 3))

    settings = {"image_size": 16, "neighbors": 3, "batch_size": 20}
    scores = probe_folder(colors, images / "train", images / "test", **settings)
    assert scores == [{"features": {"knn": 1.0, "linear": 1.0}}]
    assert shapes == 2 * [((20, 3, 16, 16), torch.uint8), ((4, 3, 16, 16), torch.uint8)]
    shapes.clear()
    draws = probe_folder(
        lambda pixels: {"red": colors(pixels)[:, :1], "nothing": torch.ones(len(pixels), 2)},
        ClassFolder(root=str(images / "train")),
        ClassFolder(root=str(images / "test")),
        labels_per_class=2,
        seeds=(0, 1),
        **settings,
    )
    assert [set(draw) for draw in draws] == 2 * [{"red", "nothing"}]
    assert [draw["red"]["linear"] for draw in draws] == [1.0, 1.0]
    assert [draw["nothing"]["linear"] for draw in draws] == [0.5, 0.5]
    assert len(shapes) == 4  # features are computed once, not once for each draw
    one = ClassFolder(root=str(images / "test"), classes=["blue", "green", "red"])
    with pytest.raises(
        ValueError, match=r"^test: expected the classes of train, \['blue', 'red'\], got \['blue', 'gre"
    ):
        probe_folder(colors, images / "train", one, **settings)


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

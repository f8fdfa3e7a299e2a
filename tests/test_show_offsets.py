"""Pictures of where deformable parts look: of the predict command, of a run, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visionlab.cli import main
from visionlab.eval.offset_drawing import best_detections, draw_bins, draw_offsets, draw_taps
from visionlab.models.detector import build_detector, save_detector
from visionlab.structures import Detections, ImageBatch
from visionlab.tasks.detect import draw_sampling


def tiny(**head):
    torch.manual_seed(0)
    backbone = {"name": "resnet10t", "options": {"channels": [8, 8, 8, 8]}, "deform_stages": [4] if head else None}
    neck = {"name": "fpn", "channels": 8}
    return build_detector(
        ["a", "b"], backbone=backbone, neck=neck, head={"name": "fast_rcnn", "fc_channels": 8, **head}
    )


@pytest.fixture(scope="module")
def deformable():
    return tiny(pool={"name": "deform_roi_pool"})


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for name, size in {"wide": (120, 30), "tall": (24, 90)}.items():
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def predict(detector, images, out, *more):
    file = out / "detector.safetensors"
    out.mkdir()
    save_detector(detector, file, provenance={"resize": {"short_side": 64, "max_size": 128}})
    return main(["predict", str(file), str(images), "--out", str(out), "--device", "cpu", *more])


def test_predict_draws_three_pictures_in_a_row(deformable, images, tmp_path):
    assert predict(deformable, images, tmp_path / "plain") == 0
    assert predict(deformable, images, tmp_path / "offsets", "--show-offsets", "--threshold", "1") == 0
    plain, shown = (sorted((tmp_path / name).glob("*.jpg")) for name in ("plain", "offsets"))
    assert len(plain) == len(shown) == 2
    for one, three in zip(plain, shown, strict=True):
        before, after = Image.open(one).size, Image.open(three).size
        assert 3 * before[0] <= after[0] < 3.3 * before[0] + 40
    assert (tmp_path / "plain" / "results.json").read_text() == (tmp_path / "offsets" / "results.json").read_text()


def test_predict_refuses_a_detector_without_deformable_parts(images, tmp_path, capsys):
    assert predict(tiny(), images, tmp_path / "out", "--show-offsets") == 2
    error = capsys.readouterr().err
    assert "show_offsets: expected a detector with deformable parts" in error
    assert error.count("\n") == 1


def test_a_run_draws_its_first_images(deformable):
    batches = [ImageBatch(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), [(64, 96), (48, 40)]) for _ in range(3)]
    pictures = draw_sampling(deformable, iter(batches), torch.device("cpu"), pictures=3)
    assert len(pictures) == 3
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures)
    assert draw_sampling(tiny(), iter(batches), torch.device("cpu")) == []


def test_which_detections_are_drawn():
    found = Detections(torch.arange(20.0).view(5, 4), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1]), torch.arange(5))
    assert best_detections(found, 0.5).labels.tolist() == [0, 1, 2]
    assert best_detections(found, 0.75).labels.tolist() == [0, 1]
    assert best_detections(found, 0.95).labels.tolist() == [0]
    assert len(best_detections(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)), 0.5)) == 0


def test_dots_and_bins_lie_where_they_should():
    image = np.zeros((100, 200, 3), np.uint8)
    boxes = np.array([[20.0, 20, 60, 60]])
    picture = draw_taps(image, boxes, [np.array([[150.0, 50.0]])], min_side=400)
    assert picture.shape == (200, 400, 3)
    assert picture[100, 300].any()
    assert picture[80, 80].tolist() == [255, 255, 255], "the middle of the box"
    assert not picture[150:, :].any()
    bins = np.array([[[[100.0, 30, 120, 50]]]])
    picture = draw_bins(image, boxes, bins, min_side=400)
    assert picture[60:100, 200].any(1).all()
    assert not picture[62:98, 210:230].any()
    assert draw_offsets(image, image, boxes, [], 0, None).shape[1] == 200

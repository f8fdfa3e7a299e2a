"""The predictor against the detector it wraps."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionlab.data.samples import collate_images
from visionlab.data.transforms import EvaluationResize
from visionlab.eval.several_views import SeveralViews
from visionlab.inference import Predictor, load_detector
from visionlab.models.detector import build_detector, save_detector
from visionlab.models.merged_views import detect_in_views

SIZES = [(40, 80), (96, 48), (64, 64)]


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(
        ["cat", "dog"],
        backbone={"name": "resnet18", "options": {"channels": [8, 8, 16, 16]}},
        neck={"channels": 8},
        rpn={"anchor_sizes": [[8], [16], [24], [32], [48]], "test_proposals": 20},
        head={"fc_channels": 16, "score_threshold": 0.0},
    )


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def test_boxes_are_in_pixels_of_the_image_as_it_was_given(detector, images):
    resize = EvaluationResize(short_side=32, max_size=64)
    predictor = Predictor(detector, resize)
    for image in images:
        small = resize.apply_to_image(image)
        raw = detector.detect(collate_images([small]))[0]
        found = predictor([image])[0]
        assert len(found) > 5
        scale = torch.tensor([image.shape[1] / small.shape[2], image.shape[0] / small.shape[1]] * 2)
        torch.testing.assert_close(found.boxes, raw.boxes * scale)
        assert torch.equal(found.scores, raw.scores)
        assert torch.equal(found.labels, raw.labels)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_all_images_come_back_in_order(batch_size, detector, images):
    predictor = Predictor(detector, EvaluationResize(short_side=32, max_size=64), batch_size=batch_size)
    found = predictor(images)
    assert len(found) == len(images)
    for part, (height, width) in zip(found, SIZES, strict=True):
        x2, y2 = part.boxes[:, 2].max(), part.boxes[:, 3].max()
        assert x2 <= width + 1e-3
        assert y2 <= height + 1e-3
        assert x2 > width / 2
        assert y2 > height / 2
    assert predictor([]) == []


@pytest.fixture(scope="module")
def album():
    """Images of many sizes, upright and across, in no order."""
    generator = np.random.default_rng(1)
    sizes = [(40, 80), (96, 48), (64, 64), (41, 79), (200, 100), (50, 99), (80, 40), (64, 61), (30, 200), (40, 80)]
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("batch_size", [2, 8])
def test_detections_do_not_depend_on_the_other_images(batch_size, detector, album):
    resize = EvaluationResize(short_side=40, max_size=80)
    predictor = Predictor(detector, resize, batch_size=batch_size)
    batches = predictor.batches([image.shape[:2] for image in album])
    assert max(map(len, batches)) > 1
    alone = Predictor(detector, resize, batch_size=1)
    for found, image in zip(predictor(album), album, strict=True):
        expected = alone([image])[0]
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)


def test_batches_hold_every_image_once_and_not_too_many_pixels(detector, monkeypatch):
    predictor = Predictor(detector, EvaluationResize(short_side=40, max_size=80), batch_size=3)
    sizes = [(400, 800), (800, 400), (401, 800)] * 4 + [(400, 800)]
    batches = predictor.batches(sizes)
    assert sorted(row for rows in batches for row in rows) == list(range(len(sizes)))
    assert sorted(map(len, batches)) == [1, 3, 3, 3, 3]
    monkeypatch.setattr("visionlab.inference.MOST_PIXELS", 650_000)
    assert max(map(len, predictor.batches(sizes))) == 2
    assert predictor.batches([(4000, 8000)] * 2) == [[0], [1]]
    assert predictor.batches([]) == []


def test_files_and_arrays_are_the_same(detector, images, tmp_path):
    predictor = Predictor(detector, EvaluationResize(short_side=32, max_size=64))
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    by_path, by_name, by_array = predictor([tmp_path / "image.png", str(tmp_path / "image.png"), images[0]])
    assert torch.equal(by_path.boxes, by_array.boxes)
    assert torch.equal(by_name.boxes, by_array.boxes)


def test_several_views_are_in_pixels_of_the_image_as_it_was_given(detector, images):
    resize, views = EvaluationResize(short_side=32, max_size=64), SeveralViews(flip=True, sizes=[32, 48])
    found = Predictor(detector, resize, augment=views)(images)
    for image, ours in zip(images, found, strict=True):
        sizes = [EvaluationResize(short_side=32, max_size=64), EvaluationResize(short_side=48, max_size=96)]
        batches = [collate_images([size.apply_to_image(image)]) for size in sizes]
        [expected] = detect_in_views(detector, batches, flip=True)
        height, width = batches[0].sizes[0]
        scale = torch.tensor([image.shape[1] / width, image.shape[0] / height] * 2)
        assert len(ours) > 5
        torch.testing.assert_close(ours.boxes, expected.boxes * scale, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours.scores, expected.scores)
    plain = Predictor(detector, resize)(images)
    assert any(len(a) != len(b) or not torch.equal(a.scores, b.scores) for a, b in zip(found, plain, strict=True))
    one = Predictor(detector, resize, augment=SeveralViews(sizes=[32]))(images)
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(one, plain, strict=True))


def test_a_detector_file_knows_its_size(detector, images, tmp_path):
    path = tmp_path / "detector.safetensors"
    save_detector(detector, path, provenance={"resize": {"short_side": 32, "max_size": 64}})
    expected = Predictor(detector, EvaluationResize(short_side=32, max_size=64))(images)
    for source in (path, str(path), tmp_path):
        loaded = load_detector(source)
        assert loaded.classes == ["cat", "dog"]
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(loaded(images), expected, strict=True))
    save_detector(detector, path)
    with pytest.raises(ValueError, match="expected the image size"):
        load_detector(path)
    with pytest.raises(ValueError, match=r"none\.safetensors"):
        load_detector(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8)],
    ids=["gray", "float", "alpha"],
)
def test_other_arrays_are_refused(image, detector):
    predictor = Predictor(detector, EvaluationResize(short_side=32, max_size=64))
    with pytest.raises(ValueError, match=r"expected a \(H, W, 3\) uint8 RGB array, got"):
        predictor([image])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        Predictor(detector, predictor.resize, batch_size=0)

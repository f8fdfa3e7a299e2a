"""Detections to COCO rows, over images and processes."""

import json

import pytest
import torch

from visionlab import distributed
from visionlab.eval.detection import DetectionEvaluator, headline, metrics_from_json, to_results
from visionlab.structures import Detections, ImageBatch


def detections(boxes, labels):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.linspace(0.9, 0.5, len(boxes))
    return Detections(boxes, scores, torch.tensor(labels, dtype=torch.int64))


def batch(ids):
    count = len(ids)
    pixels = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    return ImageBatch(pixels, [(50, 60)] * count, original_sizes=[(100, 240)] * count, ids=ids)


TRUTH = {
    "images": [{"id": image} for image in (1, 5)],
    "categories": [{"id": 20, "name": "b"}, {"id": 10, "name": "a"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 20, "bbox": [40, 20, 80, 40], "area": 3200, "iscrowd": 0},
        {"id": 2, "image_id": 5, "category_id": 10, "bbox": [0, 0, 240, 100], "area": 24000, "iscrowd": 0},
    ],
}


def test_rows_are_in_pixels_of_the_original_image():
    found = detections([[10, 10, 30, 30], [0, 0, 60, 50]], [1, 0])
    rows = to_results(found, 7, (50, 60), (100, 240), [10, 20])
    assert rows[0] == {"image_id": 7, "category_id": 20, "bbox": [40, 20, 80, 40], "score": pytest.approx(0.9)}
    assert rows[1]["bbox"] == [0, 0, 240, 100]
    assert rows[1]["category_id"] == 10
    assert torch.equal(found.boxes[0], torch.tensor([10.0, 10, 30, 30]))


def test_rows_of_nothing():
    assert to_results(detections([], []), 7, (50, 60), (100, 240), [10, 20]) == []


def test_evaluator_measures_a_dataset():
    evaluator = DetectionEvaluator(TRUTH, [10, 20])
    evaluator.add(batch([1]), [detections([[10, 10, 30, 30]], [1])])
    evaluator.add(batch([5]), [detections([], [])])
    metrics = evaluator.metrics()
    assert metrics.per_class == pytest.approx({"a": 0, "b": 1}, abs=1e-9)
    assert (metrics.images, metrics.detections) == (2, 1)


def test_an_image_counts_once():
    evaluator = DetectionEvaluator(TRUTH, [10, 20])
    evaluator.add(batch([1]), [detections([], [])])
    with pytest.raises(ValueError, match="image 1 came again"):
        evaluator.add(batch([1]), [detections([], [])])


@pytest.mark.parametrize("metrics", ["coco", "voc07", "voc12"])
def test_processes_are_put_together(metrics, monkeypatch):
    here, there = (DetectionEvaluator(TRUTH, [10, 20], metrics=metrics) for _ in range(2))
    here.add(batch([5]), [detections([[0, 0, 60, 50]], [0])])
    there.add(batch([1]), [detections([[10, 10, 30, 30]], [1])])
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, there._rows])
    assert [row["image_id"] for row in here.results()] == [1, 5]
    measured = here.metrics()
    assert pytest.approx(1, abs=1e-9) == getattr(measured, measured.headline)
    there.add(batch([5]), [detections([], [])])
    with pytest.raises(ValueError, match="image 5 came from two"):
        here.results()


def test_too_few_detections_to_measure_are_refused():
    with pytest.raises(ValueError, match="max_detections: expected more than 10, got 10"):
        DetectionEvaluator(TRUTH, [10, 20], max_detections=10)


@pytest.mark.parametrize("metrics", ["voc07", "voc12"])
def test_what_is_only_cocos_is_refused_beside_vocs(metrics):
    with pytest.raises(ValueError, match=f"max_detections: no effect beside metrics: {metrics}"):
        DetectionEvaluator(TRUTH, [10, 20], metrics=metrics, max_detections=200)
    with pytest.raises(ValueError, match=f"backend: no effect beside metrics: {metrics}"):
        DetectionEvaluator(TRUTH, [10, 20], metrics=metrics, backend="faster-coco-eval")


def test_metrics_read_their_own_json():
    for metrics in ("coco", "voc07", "voc12"):
        evaluator = DetectionEvaluator(TRUTH, [10, 20], metrics=metrics)
        evaluator.add(batch([1]), [detections([[10, 10, 30, 30]], [1])])
        measured = evaluator.metrics()
        assert metrics_from_json(json.loads(json.dumps({"step": 3, **measured.to_json()}))) == measured
        assert measured.headline == headline(metrics) in measured.summary()


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"name": "views"}, r"augment: no effect without flip or sizes"),
        ({"name": "views", "sizes": [0]}, r"augment\.sizes: expected numbers, each at least 1, got \[0\]"),
        ({"name": "views", "sizes": []}, r"augment\.sizes: expected numbers, each at least 1, got \[\]"),
        ({"name": "views", "sizes": [5, 6, 5]}, r"augment\.sizes: expected each once, got \[5, 6, 5\]"),
    ],
)
def test_views_that_are_none_are_refused(augment, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DetectionEvaluator({}, [], augment=augment)

"""Suppression of alike boxes: class by class, one box at a time, in plain numbers."""

import math

import pytest
import torch

from visionlab.models.suppression import suppress
from visionlab.ops import batched_nms

KINDS = ["hard", "soft_linear", "soft_gaussian"]
SETTINGS = {"iou_threshold": 0.4, "sigma": 0.3, "score_threshold": 0.1}


def crowded(count: int = 60, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.double) * 20
    boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2, generator=generator, dtype=torch.double) * 20), dim=1)
    scores = torch.rand(count, generator=generator, dtype=torch.double) * 0.9 + 0.1001
    labels = torch.randint(classes, (count,), generator=generator) * 3  # some labels stand for no box
    return boxes, scores, labels


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def one_at_a_time(kind, boxes, scores, labels) -> list[tuple[float, int]]:
    boxes, left = boxes.tolist(), dict(enumerate(scores.tolist()))
    found = []
    while left:
        best = max(left, key=lambda row: left[row])
        found.append((left.pop(best), best))
        for row in list(left):
            if labels[row] != labels[best]:
                continue
            overlap = iou(boxes[row], boxes[best])
            if kind == "soft_gaussian":
                left[row] *= math.exp(-(overlap**2) / SETTINGS["sigma"])
            elif overlap >= SETTINGS["iou_threshold"]:
                left[row] *= 1 - overlap if kind == "soft_linear" else 0
            if left[row] <= SETTINGS["score_threshold"]:
                del left[row]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 5])
def test_same_as_one_box_at_a_time(kind, classes):
    boxes, scores, labels = crowded(classes=classes)
    kept, lowered = suppress(kind, boxes, scores, labels, **SETTINGS)
    expected = one_at_a_time(kind, boxes, scores, labels)
    assert 5 < len(expected) < 60
    assert kept.tolist() == [row for _, row in expected]
    assert lowered.tolist() == pytest.approx([score for score, _ in expected])
    assert kind == "hard" or not torch.equal(lowered, scores[kept])


def test_hard_is_non_maximum_suppression():
    boxes, scores, labels = crowded()
    kept, lowered = suppress("hard", boxes, scores, labels, **SETTINGS)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, 0.4))
    assert torch.equal(lowered, scores[kept])


@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes(kind):
    kept, scores = suppress(kind, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), **SETTINGS)
    assert (kept.tolist(), kept.dtype, scores.tolist()) == ([], torch.int64, [])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_score_that_falls_to_the_threshold_is_left_out(kind):
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(2, 4)
    kept, _ = suppress(kind, boxes, torch.tensor([0.9, 0.5]), torch.zeros(2).long(), **SETTINGS)
    assert kept.tolist() == [0]
    kept, _ = suppress(kind, boxes, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]), **SETTINGS)
    assert kept.tolist() == [0, 1]

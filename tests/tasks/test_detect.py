"""Detecting a dataset: every image to the evaluator, a few of them drawn."""

from types import SimpleNamespace

import torch
from torch import nn

from visionlab.structures import Detections, ImageBatch, Target
from visionlab.tasks.detect import DetectTask, detect_all


class OneBox(nn.Module):
    """Finds one box in each image."""

    classes = ("thing",)

    def detect(self, batch):
        box = torch.tensor([[2.0, 2.0, 10.0, 12.0]])
        return [Detections(box, torch.tensor([0.9]), torch.tensor([0])) for _ in range(len(batch))]

    def losses(self, batch):
        return {"rpn/objectness": torch.ones(())}


def batches():
    for start in (0, 3, 6):
        targets = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))] * 3
        yield ImageBatch(
            torch.zeros(3, 3, 32, 64, dtype=torch.uint8),
            sizes=[(32, 64), (24, 40), (32, 32)],
            targets=targets,
            ids=[start, start + 1, start + 2],
        )


def test_the_evaluator_gets_all():
    seen = []
    evaluator = SimpleNamespace(add=lambda batch, found: seen.extend(zip(batch.ids, found, strict=True)))
    pictures = detect_all(OneBox(), batches(), evaluator, torch.device("cpu"), pictures=5)
    assert [image_id for image_id, _ in seen] == list(range(9))
    assert len(pictures) == 5
    wide, narrow = pictures[0].shape[1] / pictures[0].shape[0], pictures[1].shape[1] / pictures[1].shape[0]
    assert wide > narrow  # drawn without the padding


def test_the_task_gives_the_detectors_losses():
    assert DetectTask(OneBox())(next(batches())) == {"rpn/objectness": 1}

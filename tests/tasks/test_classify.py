"""The classifier that pretext methods are compared with."""

import pytest
import torch
import torch.nn.functional as F

from visionlab.models.backbone import Backbone
from visionlab.structures import ViewBatch
from visionlab.tasks.classify import ClassifyTask


def test_labels_are_those_of_the_images_ids():
    torch.manual_seed(0)
    task = ClassifyTask(Backbone(name="resnet18", options={"channels": [8, 16, 16, 16]}), [0, 2, 1, 2], 3).eval()
    assert task.meters() == {}
    assert "labels" not in task.state_dict()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    losses = task(ViewBatch([pixels], ids=[3, 0]))
    with torch.no_grad():
        logits = task.classifier(task.encoder.pool(task.encoder.normalize(pixels)))
    expected = -F.log_softmax(logits, dim=1)[[0, 1], [2, 0]].mean()
    assert losses["classes"].item() == pytest.approx(expected.item())
    assert task.meters()["accuracy"] == (logits.argmax(1) == torch.tensor([2, 0])).float().mean()

"""Classification: an encoder trained on labels, to compare pretext methods with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab.models.backbone import Backbone
from visionlab.structures import ViewBatch
from visionlab.train.task import Task


class ClassifyTask(Task):
    """Train an encoder and a linear classifier of its pooled features.

    Args:
        encoder: the backbone to train.
        labels: the class of each image of the dataset; ``ViewBatch.ids`` are places in it.
        classes: number of classes.
    """

    labels: Tensor

    def __init__(self, encoder: Backbone, labels: Sequence[int], classes: int):
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.num_features, classes)
        self.register_buffer("labels", torch.tensor(labels), persistent=False)
        self._accuracy: Tensor | None = None

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the cross entropy of a batch whose first view is looked at."""
        logits = self.classifier(self.encoder.pool(self.encoder.normalize(batch.views[0])))
        labels = self.labels[torch.tensor(batch.ids, device=logits.device)]
        self._accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"classes": F.cross_entropy(logits, labels)}

    def meters(self) -> dict[str, float]:
        """Return the accuracy on this process's last batch."""
        return {} if self._accuracy is None else {"accuracy": float(self._accuracy)}

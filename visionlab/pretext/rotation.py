"""Rotation prediction: tell by how many quarter turns an image was rotated."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab.data.views import Views, ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch

# Transforms that take from an image what it is upright by.
TURNS = {
    "Affine",
    "D4",
    "RandomRotate90",
    "Rotate",
    "SafeRotate",
    "ShiftScaleRotate",
    "SquareSymmetry",
    "Transpose",
    "VerticalFlip",
}


class Rotation(Pretext):
    """Predict which of four rotations an image has; all four of each image stand in one batch.

    Only an encoder that recognizes objects and their parts knows which way up they belong. Images without an upright
    direction (microscopy, aerial) teach it nothing.

    Args:
        encoder: the backbone to train.
        views: what a view shows; all four rotations are of one view.

    Source: Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations", 2018,
    arXiv:1803.07728.
    """

    @flat_settings
    def __init__(self, encoder: Backbone, *, views: ViewSettings):
        super().__init__(encoder)
        views.refuse_extra(TURNS, "which turns images: the turn is what is to be predicted")
        self.views = Views.crops(views=views)
        self.classifier = nn.Linear(encoder.num_features, 4)

    def forward(self, batch: ViewBatch) -> PretextOutput:
        features = self.encoder.pool(self.encoder.normalize(rotations(batch.views[0])))
        logits = self.classifier(features)
        turns = torch.arange(4, device=logits.device).repeat_interleave(len(batch))
        accuracy = (logits.argmax(dim=1) == turns).float().mean()
        return PretextOutput({"rotation": F.cross_entropy(logits, turns)}, features, {"accuracy": accuracy})

    def pictures(self, batch: ViewBatch) -> ViewBatch:
        """Return the four rotations of each image as views."""
        return replace(batch, views=list(rotations(batch.views[0]).chunk(4)))


def rotations(images: Tensor) -> Tensor:
    """Return ``(4 N, 3, S, S)``: ``(N, 3, S, S)`` images turned by 0, 90, 180 and 270 degrees, in that order."""
    return torch.cat([torch.rot90(images, turns, dims=(2, 3)) for turns in range(4)])

"""SimCLR: two views of an image belong together, views of different images do not."""

from __future__ import annotations

import torch

from visionlab.data.views import Views, ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.pretext.heads import HiddenWidth, ProjectionWidth, projection_mlp
from visionlab.pretext.losses import Temperature, nt_xent
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch


class SimCLR(Pretext):
    """Contrast two random views of each image with the views of all other images of the batch, over all processes.

    Args:
        encoder: the backbone to train.
        views: what the two views show; a ``color_strength`` of 1 is that of the paper.
        softmax: of the loss.
        hidden: the projection's hidden layer.
        projection: the projection.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
    arXiv:2002.05709.
    """

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings = ViewSettings(crop_scale=(0.08, 1.0), color_strength=1.0, grayscale=0.2, blur=0.5),
        softmax: Temperature,
        hidden: HiddenWidth,
        projection: ProjectionWidth,
    ):
        super().__init__(encoder)
        self.views = Views.crops(views=views, count=2)
        self.projection = projection_mlp(encoder.num_features, hidden.hidden_dim, projection.projection_dim)
        self.temperature = softmax.temperature

    def forward(self, batch: ViewBatch) -> PretextOutput:
        features = self.encoder.pool(self.encoder.normalize(torch.cat(batch.views)))
        first, second = self.projection(features).chunk(2)
        loss, accuracy = nt_xent(first, second, self.temperature)
        return PretextOutput({"contrast": loss}, features[: len(batch)], {"accuracy": accuracy}, projection=first)

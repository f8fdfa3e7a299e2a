"""SimCLR: two views of an image belong together, views of different images do not."""

from __future__ import annotations

import torch

from visionlab.checks import check_above, check_at_least
from visionlab.data.views import Views
from visionlab.models.backbone import Backbone
from visionlab.pretext.heads import projection_mlp
from visionlab.pretext.losses import nt_xent
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.structures import ViewBatch


class SimCLR(Pretext):
    """Contrast two random views of each image with the views of all other images of the batch, over all processes.

    Args:
        encoder: the backbone to train.
        image_size: side of the square views, in pixels.
        crop_scale: smallest and largest share of the image's area that a view shows, in (0, 1].
        color_strength: how strongly brightness, contrast, saturation and hue are changed; 1 as in the paper, 0 not.
        grayscale: probability of losing all color.
        blur: probability of a Gaussian blur.
        flip: probability of a horizontal mirror image.
        temperature: softmax temperature of the loss, above 0.
        hidden_dim: width of the projection's hidden layer.
        projection_dim: width of the space in which views are compared.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
    arXiv:2002.05709.
    """

    def __init__(
        self,
        encoder: Backbone,
        *,
        image_size: int = 224,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        color_strength: float = 1.0,
        grayscale: float = 0.2,
        blur: float = 0.5,
        flip: float = 0.5,
        temperature: float = 0.1,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
    ):
        super().__init__(encoder)
        check_above(0, temperature=temperature)
        check_at_least(1, hidden_dim=hidden_dim, projection_dim=projection_dim)
        self.views = Views.crops(
            image_size,
            count=2,
            crop_scale=crop_scale,
            flip=flip,
            color_strength=color_strength,
            grayscale=grayscale,
            blur=blur,
        )
        self.projection = projection_mlp(encoder.num_features, hidden_dim, projection_dim)
        self.temperature = temperature

    def forward(self, batch: ViewBatch) -> PretextOutput:
        features = self.encoder.pool(self.encoder.normalize(torch.cat(batch.views)))
        first, second = self.projection(features).chunk(2)
        loss, accuracy = nt_xent(first, second, self.temperature)
        return PretextOutput({"contrast": loss}, features[: len(batch)], {"accuracy": accuracy}, projection=first)

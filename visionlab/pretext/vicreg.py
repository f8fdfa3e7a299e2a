"""VICReg: views of an image agree, while dimensions keep their variance and do not repeat each other."""

from __future__ import annotations

import torch

from visionlab.checks import check_at_least
from visionlab.data.views import Views, ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.pretext.heads import HiddenWidth, ProjectionWidth, projection_mlp
from visionlab.pretext.losses import vicreg_terms
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch

COLLAPSED_VARIANCE = 0.9  # of at most 1; a network starts at two thirds and a healthy one comes close to 0


class VICReg(Pretext):
    """Pull two views of each image together, and hold off collapse by the variance and covariance of the embedding.

    There are no negatives, so batches may be small. The terms are losses with their weights and metrics without: a
    ``variance`` near 1 is a collapse to a point, a growing ``covariance`` one to few dimensions.

    Args:
        encoder: the backbone to train.
        views: what the two views show.
        invariance: weight of the distance between the views.
        variance: weight of what standard deviations fall short of 1.
        covariance: weight of the covariances between dimensions.
        hidden: the expander's two hidden layers; 8192 wide in the paper.
        projection: the embedding the terms look at; 8192 wide in the paper.

    Source: Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2022,
    arXiv:2105.04906.
    """

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings = ViewSettings(
            crop_scale=(0.08, 1.0), color_strength=0.5, grayscale=0.2, blur=0.5, solarize=0.1
        ),
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        hidden: HiddenWidth,
        projection: ProjectionWidth = ProjectionWidth(projection_dim=2048),
    ):
        super().__init__(encoder)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        check_at_least(0, **self.weights)
        self.views = Views.crops(views=views, count=2)
        self.expander = projection_mlp(encoder.num_features, hidden.hidden_dim, projection.projection_dim, layers=3)

    def forward(self, batch: ViewBatch) -> PretextOutput:
        features = self.encoder.pool(self.encoder.normalize(torch.cat(batch.views)))
        first, second = self.expander(features).chunk(2)
        terms = vicreg_terms(first, second)
        losses = {name: self.weights[name] * term for name, term in terms.items()}
        return PretextOutput(losses, features[: len(batch)], terms, projection=first)

    def warnings(self, output: PretextOutput) -> list[str]:
        """Return a sentence if the embedding hardly varies; the meters of all methods do not look at its scale."""
        if output.metrics["variance"] < COLLAPSED_VARIANCE:
            return []
        return [
            f"the projection has COLLAPSED: its dimensions hardly vary (variance is above {COLLAPSED_VARIANCE}); "
            f"raise the weight of the variance or lower the learning rate"
        ]

"""Deep InfoMax: the code of an image tells as much as it can about every place of the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from visionlab import distributed
from visionlab.checks import check_at_least
from visionlab.data.views import Views, ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.pretext.estimators import ESTIMATORS
from visionlab.pretext.heads import HiddenWidth
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.prior import PriorMatching
from visionlab.pretext.scorers import SCORERS
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch


class DeepInfoMax(Pretext):
    """Maximize the mutual information between an image's code and its feature map, as a whole and place by place.

    The code is a linear map of the encoder's pooled features. A critic scores codes against maps; those of other images
    of the batch, over all processes, stand for independent ones. A third term matches the codes to an even prior.

    Args:
        encoder: the backbone to train; it needs a feature level below the last.
        views: what a view shows.
        local_stride: the feature level that the code is to tell about, by its stride; by default the last but one.
        global_weight: weight of the information about the map as a whole (alpha).
        local_weight: weight of the mean information about its places (beta).
        prior_weight: weight of prior matching (gamma).
        estimator: how information is measured: infonce | jsd | dv | nwj.
        scorer: how codes and maps are compared: dot (encode-and-dot) | concat (concat-and-convolve).
        num_negatives: how many other images each is contrasted with; by default all others of the batch.
        code_dim: width of the code.
        hidden: the scorer's layers, which it must have.

    Source: Hjelm et al., "Learning deep representations by mutual information estimation and maximization", 2019,
    arXiv:1808.06670, equation 8.
    """

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings,
        local_stride: int | None = None,
        global_weight: float = 0.0,
        local_weight: float = 1.0,
        prior_weight: float = 0.1,
        estimator: Literal["infonce", "jsd", "dv", "nwj"] = "infonce",
        scorer: Literal["dot", "concat"] = "dot",
        num_negatives: int | None = None,
        code_dim: int = 64,
        hidden: HiddenWidth = HiddenWidth(hidden_dim=512),
    ):
        super().__init__(encoder)
        check_at_least(0, global_weight=global_weight, local_weight=local_weight, prior_weight=prior_weight)
        check_at_least(1, num_negatives=num_negatives, code_dim=code_dim)
        if hidden.hidden_dim is None:
            raise ValueError("hidden_dim: expected the width of the scorer's layers, got none")
        if global_weight == local_weight == 0:
            raise ValueError("local_weight: expected more than 0, or else global_weight, got 0 for both")
        self.views = Views.crops(views=views)
        self.level = _choose_level(encoder, local_stride)
        self.estimate, self.num_negatives = ESTIMATORS[estimator], num_negatives
        self.weights = {"global": global_weight, "local": local_weight}
        self.prior_weight = prior_weight

        channels = encoder.channels[self.level]
        self.code = nn.Linear(encoder.num_features, code_dim)
        self.scorers = nn.ModuleDict()
        if global_weight:
            self.summary = _Summary(channels, -(-views.image_size // encoder.strides[self.level]))
            self.scorers["global"] = SCORERS[scorer](code_dim, self.summary.num_features, hidden.hidden_dim)
        if local_weight:
            self.scorers["local"] = SCORERS[scorer](code_dim, channels, hidden.hidden_dim)
        if prior_weight:
            self.prior = PriorMatching(code_dim)

    def forward(self, batch: ViewBatch) -> PretextOutput:
        levels = self.encoder(self.encoder.normalize(batch.views[0]))
        pooled, local_map = levels[-1].mean((2, 3)), levels[self.level]
        codes = self.code(pooled)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        accuracies = []
        for name, scorer in self.scorers.items():
            places = self.summary(local_map)[:, None] if name == "global" else local_map.flatten(2).transpose(1, 2)
            information, accuracy = self._contrast(scorer, codes, places)
            losses[name] = -self.weights[name] * information
            metrics |= {f"{name}_information": information, f"{name}_accuracy": accuracy}
            accuracies.append(accuracy)
        metrics["accuracy"] = torch.stack(accuracies).mean()
        if self.prior_weight:
            adversarial, discriminator = self.prior(codes, batch.seeds)
            losses |= {"prior": self.prior_weight * adversarial, "discriminator": self.prior_weight * discriminator}
        return PretextOutput(losses, pooled, metrics)

    def _contrast(self, scorer: nn.Module, codes: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the estimated information, and how often a place's own code scores higher than those of the others."""
        candidates, own = self._candidates(len(codes), codes.device)
        scores = scorer(codes, places, candidates)
        positives = torch.zeros_like(scores, dtype=torch.bool)
        positives[torch.arange(len(codes), device=codes.device), own] = True
        information = self.estimate(scores.flatten(1), positives.flatten(1))
        accuracy = (scores.argmax(dim=1) == own[:, None]).float().mean()
        return information, accuracy

    def _candidates(self, count: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
        """Return the images each is compared with, None for all, and where in them its own is."""
        everyone = count * distributed.world_size()
        wanted = everyone - 1 if self.num_negatives is None else self.num_negatives
        if not 1 <= wanted < everyone:
            raise ValueError(
                f"batch_size: expected at least {max(wanted, 1) + 1} images over all processes, got {everyone}"
            )
        own = torch.arange(count, device=device) + distributed.rank() * count
        if self.num_negatives is None:
            return None, own
        offsets = torch.arange(self.num_negatives + 1, device=device)
        return (own[:, None] + offsets) % everyone, torch.zeros_like(own)


class _Summary(nn.Module):
    """Makes one vector of a whole feature map: two convolutions, then all that they give, place by place.

    Source: Hjelm et al. 2019, arXiv:1808.06670, appendix.
    """

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1)
        )
        self.num_features = 32 * side * side

    def forward(self, local_map: Tensor) -> Tensor:
        return self.convolutions(local_map).flatten(1)


def _choose_level(encoder: Backbone, stride: int | None) -> int:
    """Return the index of a level below the last: each place of the last may have seen the whole image."""
    below = list(encoder.strides[:-1])
    if not below:
        raise ValueError(
            f"local_stride: expected a feature level below the last, {encoder.name} gives only one, as plain vision "
            f"transformers do, where every place has seen the whole image; choose another method or backbone"
        )
    if stride is not None and stride not in below:
        raise ValueError(f"local_stride: expected one of {below} for {encoder.name}, got {stride}")
    return below.index(below[-1] if stride is None else stride)

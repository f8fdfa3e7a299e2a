"""Instance discrimination: every image of the dataset is a class of its own."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab import distributed
from visionlab.checks import check_at_least
from visionlab.data.views import Views, ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.precision import full_precision, upcast
from visionlab.pretext.heads import ProjectionWidth
from visionlab.pretext.losses import Temperature, noise_contrastive
from visionlab.pretext.memory_bank import MemoryBank
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.seeding import derive_seed
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch


class InstanceDiscrimination(Pretext):
    """Recognize each image among all of the dataset, by its direction in a memory bank.

    ``softmax`` computes the probability over all images; ``nce`` tells the image from a few thousand drawn at random,
    which costs the same whatever the number of images.

    Args:
        encoder: the backbone to train.
        views: what a view shows.
        softmax: of the loss.
        projection: the space of the directions.
        bank_momentum: the share of an image's old direction that stays when it comes again, in [0, 1].
        loss: over all images, or against noise.
        noise_samples: images drawn as noise for each image, uniformly, under ``nce``.
        normalizer: under ``nce``, of the model's probabilities: ``fixed`` at what the first batch estimates, as in the
            paper, or ``learned`` like a weight.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018,
    arXiv:1805.01978; Gutmann and Hyvärinen, "Noise-contrastive estimation", AISTATS 2010.
    """

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings = ViewSettings(crop_scale=(0.2, 1.0), color_strength=0.5, grayscale=0.2),
        softmax: Temperature = Temperature(temperature=0.07),
        projection: ProjectionWidth,
        bank_momentum: float = 0.5,
        loss: Literal["nce", "softmax"] = "nce",
        noise_samples: int = 4096,
        normalizer: Literal["fixed", "learned"] = "fixed",
    ):
        super().__init__(encoder)
        check_at_least(1, noise_samples=noise_samples)
        if loss == "softmax" and (normalizer, noise_samples) != ("fixed", 4096):
            raise ValueError("noise_samples and normalizer have no effect with loss softmax")
        self.views = Views.crops(views=views)
        self.projection = nn.Linear(encoder.num_features, projection.projection_dim)
        self.bank = MemoryBank(projection.projection_dim, bank_momentum)
        self.loss, self.temperature, self.noise_samples = loss, softmax.temperature, noise_samples
        self._estimated = loss == "softmax" or normalizer == "learned"
        unknown = torch.tensor(math.nan)
        if normalizer == "learned":
            self.log_normalizer = nn.Parameter(unknown)
        elif loss == "nce":
            self.register_buffer("log_normalizer", unknown)

    def prepare(self, images: int, steps: int) -> None:
        """Make a memory of so many images."""
        self.bank.prepare(images)
        if isinstance(getattr(self, "log_normalizer", None), nn.Parameter):
            nn.init.constant_(self.log_normalizer, math.log(images))  # of scores that are 0 on average

    def forward(self, batch: ViewBatch) -> PretextOutput:
        if not len(self.bank.rows) or len(batch.ids) != len(batch):
            raise ValueError("expected the id of each image, and prepare() to be told how many images there are")
        features = self.encoder.pool(self.encoder.normalize(batch.views[0]))
        ids = torch.tensor(batch.ids, device=features.device)
        rows = F.normalize(upcast(self.projection(features)))
        with full_precision(rows):
            loss, accuracy = (self._softmax if self.loss == "softmax" else self._nce)(rows, ids, batch.seeds)
        if self.training:
            self.bank.collect(ids, rows)
        return PretextOutput({self.loss: loss}, features, {"accuracy": accuracy}, projection=rows)

    def after_step(self, step: int, steps: int) -> None:
        """Move the directions of the images that came."""
        self.bank.update()

    def _softmax(self, rows: Tensor, ids: Tensor, _: list[int]) -> tuple[Tensor, Tensor]:
        logits = rows @ self.bank.rows.T / self.temperature
        return F.cross_entropy(logits, ids), (logits.argmax(dim=1) == ids).float().mean()

    def _nce(self, rows: Tensor, ids: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        bank = self.bank.rows
        others = draw_images(seeds, self.noise_samples, len(bank)).to(ids.device)
        data = (rows * bank[ids]).sum(1) / self.temperature
        noise = torch.einsum("nd,nmd->nm", rows, bank[others]) / self.temperature
        self._estimate_normalizer(noise)
        loss = noise_contrastive(data, noise, self.log_normalizer, -math.log(len(bank)))
        negatives = noise.masked_fill(others == ids[:, None], -math.inf)
        return loss, (data > negatives.amax(1)).float().mean()

    @torch.no_grad()
    def _estimate_normalizer(self, noise: Tensor) -> None:
        """Take the first scores of noise, over all processes, for those of all images (equation 8)."""
        if not self._estimated and self.log_normalizer.isnan():
            mean = distributed.average(noise.exp().mean())
            self.log_normalizer.copy_(mean.log() + math.log(len(self.bank.rows)))
        self._estimated = True


def draw_images(seeds: list[int], count: int, images: int) -> Tensor:
    """Return ``(N, count)`` indices in ``[0, images)``, row i drawn from the seed of image i alone."""
    generators = [torch.Generator().manual_seed(derive_seed(seed, "noise")) for seed in seeds]
    return torch.stack([torch.randint(images, (count,), generator=generator) for generator in generators])

"""MoCo: find the key of one's own image among those of many earlier batches; DenseCL: place by place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab.checks import check_in
from visionlab.data.views import Views, ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.precision import full_precision, upcast
from visionlab.pretext.heads import HiddenWidth, ProjectionWidth, dense_projection, queue_projection
from visionlab.pretext.losses import Temperature, contrast_with_queue
from visionlab.pretext.memory_bank import Queue
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch
from visionlab.train.momentum import MomentumCopy


class MoCo(Pretext):
    """Contrast a view with another view of its image, encoded by a momentum encoder, and with a queue of keys.

    The queue gives as many negatives as a small batch cannot. The paper shuffles images between GPUs so that batch
    normalization does not give the positive away; here the momentum encoder normalizes with averaged statistics, so
    that nothing of the batch is in a key at all, on any number of processes.

    With ``dense``, every place of the last feature map also is contrasted with the place of the other view that looks
    most like it, which serves detectors better than pooled features alone (DenseCL).

    Args:
        encoder: the backbone to train.
        views: what the two views show; version 1 has no blur.
        softmax: of the loss; the temperature of version 1 is 0.07.
        momentum: the share of the momentum encoder's weights that stays at each step, in [0, 1].
        final_momentum: the share at the end of training, to which ``momentum`` moves along half a cosine, 1 in version
            3; by default it is constant.
        queue_size: how many keys are negatives; fewer than there are images, else an image meets itself.
        hidden: the projection's hidden layer; version 1 has none.
        projection: the projection.
        dense: whether to contrast places too.
        dense_weight: the share of the dense loss in the sum, in [0, 1].

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, arXiv:1911.05722;
    Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020, arXiv:2003.04297; Chen et al., "An
    Empirical Study of Training Self-Supervised Vision Transformers", 2021, arXiv:2104.02057, for the final momentum;
    Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", 2021, arXiv:2011.09157.
    """

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings = ViewSettings(crop_scale=(0.2, 1.0), color_strength=0.5, grayscale=0.2, blur=0.5),
        softmax: Temperature = Temperature(temperature=0.2),
        momentum: float = 0.999,
        final_momentum: float | None = None,
        queue_size: int = 65536,
        hidden: HiddenWidth,
        projection: ProjectionWidth,
        dense: bool = False,
        dense_weight: float = 0.5,
    ):
        super().__init__(encoder)
        check_in("[0, 1]", dense_weight=dense_weight)
        if not dense and dense_weight != 0.5:
            raise ValueError("dense_weight: no effect without dense")
        hidden_dim, projection_dim = hidden.hidden_dim, projection.projection_dim
        self.views = Views.crops(views=views, count=2)
        self.projection = queue_projection(encoder.num_features, hidden_dim, projection_dim)
        self.queue = Queue(queue_size, projection_dim)
        self.temperature, self.dense_weight = softmax.temperature, dense_weight if dense else 0.0
        self.dense_projection: nn.Module | None = None
        if dense:
            if hidden_dim is None:
                raise ValueError("hidden_dim: expected a width with dense, got none")
            self.dense_projection = dense_projection(encoder.num_features, hidden_dim, projection_dim)
            self.dense_queue = Queue(queue_size, projection_dim)
        self.momentum_copy = MomentumCopy(self._networks(), momentum, final_momentum)

    @property
    def depends_on_length(self) -> bool:
        return self.momentum_copy.final_momentum is not None

    def forward(self, batch: ViewBatch) -> PretextOutput:
        places = self.encoder(self.encoder.normalize(batch.views[0]))[-1]
        features = places.mean((2, 3))
        queries = self.projection(features)
        with torch.no_grad():
            key_places = self.momentum_copy[0](self.encoder.normalize(batch.views[1]))[-1]
            keys = F.normalize(upcast(self.momentum_copy[1](key_places.mean((2, 3)))))
        loss, accuracy = contrast_with_queue(queries, keys, self.queue.keys, self.temperature)
        losses, metrics = {"contrast": (1 - self.dense_weight) * loss}, {"accuracy": accuracy}
        if self.dense_projection is not None:
            dense_loss, metrics["dense_accuracy"] = self._contrast_places(self.dense_projection, places, key_places)
            losses["dense"] = self.dense_weight * dense_loss
        if self.training:
            self.queue.enqueue(keys)
        return PretextOutput(losses, features, metrics, projection=queries)

    def after_step(self, step: int, steps: int) -> None:
        """Update the momentum encoder, and take the newest keys into the queues."""
        self.momentum_copy.update(self._networks(), step, steps)
        self.queue.update()
        if self.dense_projection is not None:
            self.dense_queue.update()

    def _networks(self) -> list[nn.Module]:
        dense = [] if self.dense_projection is None else [self.dense_projection]
        return [self.encoder, self.projection, *dense]

    def _contrast_places(self, projection: nn.Module, places: Tensor, key_places: Tensor) -> tuple[Tensor, Tensor]:
        """Contrast ``(N, C, H, W)`` places with those of the other view, and queue the means of the latter's keys."""
        queries = projection(places).flatten(2).transpose(1, 2)
        with torch.no_grad():
            keys = self.momentum_copy[2](key_places).flatten(2)
            if self.training:
                self.dense_queue.enqueue(F.normalize(upcast(keys.mean(2))))
            matches = most_similar(places.flatten(2), key_places.flatten(2))
            keys = keys.gather(2, matches[:, None].expand(-1, keys.shape[1], -1)).transpose(1, 2)
        queue = self.dense_queue.keys
        return contrast_with_queue(queries.flatten(0, 1), keys.flatten(0, 1), queue, self.temperature)


def most_similar(places: Tensor, others: Tensor) -> Tensor:
    """Return for each place the index of the other place whose features have the highest cosine with its own.

    Args:
        places: ``(N, C, P)``.
        others: ``(N, C, Q)``.

    Returns:
        ``(N, P)`` int64 in ``[0, Q)``.
    """
    with full_precision(places):
        places, others = (F.normalize(upcast(features), dim=1) for features in (places, others))
        return (places.transpose(1, 2) @ others).argmax(dim=2)

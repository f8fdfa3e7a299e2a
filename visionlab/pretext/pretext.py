"""What every pretext method offers: its views, its losses, and the embedding its collapse shows in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from visionlab.data.views import ViewsLike
from visionlab.models.backbone import Backbone
from visionlab.structures import ViewBatch


@dataclass
class PretextOutput:
    """What a method says of one batch.

    Args:
        losses: named scalars whose sum is minimized.
        embedding: ``(M, D)`` pooled features of the encoder; the collapse meters look at them, since a projection that
            ends in a normalization can hide a collapse behind it.
        metrics: named scalars to log, for example the accuracy of the pretext task in ``[0, 1]``.
        projection: ``(M, P)`` what the loss compares, where a method has a projection; the collapse meters look at it
            too, since it can collapse on its own, and then the encoder learns nothing any more.
    """

    losses: dict[str, Tensor]
    embedding: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    projection: Tensor | None = None


class Pretext(nn.Module, ABC):
    """A self-supervised task around an encoder.

    Args:
        encoder: the backbone to train; it alone is handed on to the detector.
    """

    views: ViewsLike

    def __init__(self, encoder: Backbone):
        super().__init__()
        if encoder.settings.get("roi_stage"):
            raise ValueError("roi_stage: would have no effect, only the head of a detector runs the stage")
        self.encoder = encoder

    @abstractmethod
    def forward(self, batch: ViewBatch) -> PretextOutput:
        """Return losses, embedding and metrics of a batch of views made by ``self.views``."""

    @property
    def depends_on_length(self) -> bool:
        """Whether an update depends on how many there are; a finished run can then not be given more."""
        return False

    def prepare(self, images: int, steps: int) -> None:
        """Make ready for a training: for example make room for what is kept of each image. Most methods need nothing.

        Args:
            images: how many images there are; ``ViewBatch.ids`` are below it.
            steps: updates in the whole training, of which some may be done already.
        """

    def after_step(self, step: int, steps: int) -> None:
        """Update what gradients do not: momentum encoders, queues, memory banks. Most methods have none.

        Args:
            step: the number of the update, from 0.
            steps: updates in the whole training.
        """

    def warnings(self, output: PretextOutput) -> list[str]:
        """Return what the method's own numbers say of a collapse, beside the meters that all methods share.

        Args:
            output: of the last batch, without graph and losses.
        """
        return []

    def pictures(self, batch: ViewBatch) -> ViewBatch:
        """Return what the network sees of a batch, to be drawn; the views themselves, unless a method changes them."""
        return batch

"""The two-stage detector: which boxes might hold an object, and what is in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from visionlab.models.backbone import Backbone
from visionlab.models.evaluation import evaluating
from visionlab.models.folding import Folding
from visionlab.models.neck import Neck
from visionlab.models.norm import batch_norms
from visionlab.models.roi_head import RoIHead
from visionlab.models.rpn import RPN, AnchorPredictions, ProposalLimits
from visionlab.structures import Detections, ImageBatch


class TwoStageDetector(nn.Module):
    """Proposes boxes for objects of any class, then classifies and refines them.

    Source: Ren et al., Faster R-CNN, 2015, arXiv:1506.01497.

    Args:
        backbone: turns images into feature levels.
        neck: turns these into the levels that both stages look at.
        rpn: the first stage.
        head: the second stage.
        norm_eps: epsilon of the backbone's BatchNorm layers; by default they keep theirs. torchvision's COCO weights
            need 0.

    Attributes:
        classes: the name of each label; empty if nobody said.
        settings: what ``build_detector`` needs, besides the classes, to build the same again; empty if it did not.
        provenance: where the weights come from, if they were read from a file.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        rpn: RPN,
        head: RoIHead,
        *,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.head = head
        self.classes: list[str] = []
        self.settings: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self._folding, self._training_folding = Folding(), Folding(trained=True)
        if norm_eps is not None:
            layers = batch_norms(backbone)
            if not layers:
                raise ValueError(f"norm_eps: expected a backbone with BatchNorm layers, {backbone.name} has none")
            for layer in layers:
                layer.eps = norm_eps

    def forward(self, batch: ImageBatch) -> dict[str, Tensor] | list[Detections]:
        """Return ``losses(batch)`` in training mode, and in evaluation mode ``detect(batch)``."""
        return self.losses(batch) if self.training else self.detect(batch)

    def losses(self, batch: ImageBatch, *, limits: ProposalLimits | None = None) -> dict[str, Tensor]:
        """Compare what the detector sees with the targets, in whatever mode it is in.

        The losses are means over the candidates that all processes sampled. They depend on nothing random but
        ``batch.seeds``.

        Args:
            batch: images with targets and seeds.
            limits: how many proposals the second stage chooses from; by default ``rpn.train_limits``, also in
                evaluation mode.

        Returns:
            Four scalars, each finite and with a gradient for every trained parameter even where no image has an object:

            - ``rpn/objectness``: binary cross-entropy of the sampled anchors;
            - ``rpn/boxes``: the ``box_loss`` of the positive anchors;
            - ``head/classes``: cross-entropy of the sampled RoIs;
            - ``head/boxes``: the ``box_loss`` of the positive RoIs.

        Raises:
            ValueError: an image has no target or no seed.
        """
        if not len(batch.targets) == len(batch.seeds) == len(batch):
            raise ValueError(
                f"batch: expected a target and a seed for each of {len(batch)} images,"
                f" got {len(batch.targets)} targets and {len(batch.seeds)} seeds"
            )
        self._folding.drop()  # the weights are about to change
        images = self.backbone.normalize(batch.pixels, batch.sizes)
        features = self._folded(self._training_folding)(images)
        predictions = self._predict_anchors(features, batch)
        proposals = self.rpn.propose(predictions, batch.sizes, limits or self.rpn.train_limits)
        rpn_losses = self.rpn.losses(predictions, batch)
        head_losses = self.head.losses(self._pooled(features), proposals, batch)
        return {
            **{f"rpn/{name}": loss for name, loss in rpn_losses.items()},
            **{f"head/{name}": loss for name, loss in head_losses.items()},
        }

    @torch.no_grad()
    def propose(self, batch: ImageBatch, *, limits: ProposalLimits | None = None) -> list[Tensor]:
        """Say where objects of any class might be.

        The detector is in evaluation mode for the call, and afterwards in the mode it was in.

        Args:
            batch: images; targets are not looked at.
            limits: how many proposals; by default ``rpn.test_limits``.

        Returns:
            ``(P, 4)`` per image, best first, in pixels of the batch and inside the image.
        """
        with evaluating(self):
            return self._propose(self._features_for_inference(batch), batch, limits)

    @torch.no_grad()
    def detect(self, batch: ImageBatch, *, limits: ProposalLimits | None = None) -> list[Detections]:
        """Find the objects.

        The detector is in evaluation mode for the call, and afterwards in the mode it was in.

        Args:
            batch: images; targets are not looked at.
            limits: how many proposals are looked at; by default ``rpn.test_limits``.

        Returns:
            The detections of each image, best first, in pixels of the batch and inside the image.
        """
        return [self.head.suppress(found) for found in self.candidates(batch, limits=limits)]

    @torch.no_grad()
    def candidates(self, batch: ImageBatch, *, limits: ProposalLimits | None = None) -> list[Detections]:
        """Return what ``detect`` chooses from, of alike boxes all: ``head.suppress`` keeps the best.

        The detector is in evaluation mode for the call, and afterwards in the mode it was in.

        Args:
            batch: images; targets are not looked at.
            limits: how many proposals are looked at; by default ``rpn.test_limits``.

        Returns:
            All that scores enough in each image, in no order, in pixels of the batch and inside the image.
        """
        with evaluating(self):
            features = self._features_for_inference(batch)
            return self.head.candidates(self._pooled(features), self._propose(features, batch, limits), batch.sizes)

    def features(self, batch: ImageBatch) -> list[Tensor]:
        """Return the neck's ``(N, C, H, W)`` map of each level, finest first, in the mode the detector is in."""
        return self.neck(self.backbone(self.backbone.normalize(batch.pixels, batch.sizes)))

    def _features_for_inference(self, batch: ImageBatch) -> list[Tensor]:
        """Return what ``features`` returns, within rounding, of a detector in evaluation mode, sooner."""
        images = self.backbone.normalize(batch.pixels, batch.sizes)
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        return self._folded(self._folding)(images)

    def _folded(self, folding: Folding) -> nn.Module:
        return folding.of(nn.Sequential(self.backbone, self.neck), self.backbone.small_size)

    def _propose(self, features: list[Tensor], batch: ImageBatch, limits: ProposalLimits | None) -> list[Tensor]:
        predictions = self._predict_anchors(features, batch)
        return self.rpn.propose(predictions, batch.sizes, limits or self.rpn.test_limits)

    def _predict_anchors(self, features: list[Tensor], batch: ImageBatch) -> AnchorPredictions:
        return self.rpn.predict([features[level] for level in self.neck.proposal_levels], batch.padded_size)

    def _pooled(self, features: list[Tensor]) -> list[Tensor]:
        """Return the levels that RoIs are pooled from."""
        return [features[level] for level in self.neck.pooled_levels]

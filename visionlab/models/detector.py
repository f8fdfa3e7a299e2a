"""The two-stage detector, and a whole one built from settings on one page."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from visionlab.models.backbone import Backbone
from visionlab.models.fast_rcnn_head import FastRCNNHead
from visionlab.models.fpn import FPN
from visionlab.models.norm import batch_norms
from visionlab.models.roi_head import RoIHead
from visionlab.models.rpn import RPN
from visionlab.models.vit_pyramid import SimpleFeaturePyramid
from visionlab.structures import Detections, ImageBatch

NECKS: dict[str, type[FPN] | type[SimpleFeaturePyramid]] = {"fpn": FPN, "simple_pyramid": SimpleFeaturePyramid}


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
        neck: FPN | SimpleFeaturePyramid,
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
        if norm_eps is not None:
            layers = batch_norms(backbone)
            if not layers:
                raise ValueError(f"norm_eps: expected a backbone with BatchNorm layers, {backbone.name} has none")
            for layer in layers:
                layer.eps = norm_eps

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Compare what the detector sees with the targets.

        The losses are means over the candidates that all processes sampled. They depend on nothing random but
        ``batch.seeds``.

        Args:
            batch: images with targets and seeds.

        Returns:
            Four scalars, each finite and with a gradient for every trained parameter even where no image has an object:

            - ``rpn/objectness``: binary cross-entropy of the sampled anchors;
            - ``rpn/boxes``: smooth L1 of the positive anchors' offsets;
            - ``head/classes``: cross-entropy of the sampled RoIs;
            - ``head/boxes``: smooth L1 of the positive RoIs' offsets.

        Raises:
            ValueError: an image has no target or no seed.
        """
        if not len(batch.targets) == len(batch.seeds) == len(batch):
            raise ValueError(
                f"expected a target and a seed for each of {len(batch)} images,"
                f" got {len(batch.targets)} targets and {len(batch.seeds)} seeds"
            )
        features = self._features(batch)
        proposals, rpn_losses = self.rpn(features, batch)
        _, head_losses = self.head(features, proposals, batch)
        return {
            **{f"rpn/{name}": loss for name, loss in rpn_losses.items()},
            **{f"head/{name}": loss for name, loss in head_losses.items()},
        }

    @torch.no_grad()
    def detect(self, batch: ImageBatch) -> list[Detections]:
        """Find the objects; call ``eval()`` before.

        Args:
            batch: images; targets are not looked at.

        Returns:
            The detections of each image, best first, in pixels of the batch and inside the image.
        """
        batch = replace(batch, targets=[])
        features = self._features(batch)
        proposals, _ = self.rpn(features, batch)
        detections, _ = self.head(features, proposals, batch)
        return detections

    def _features(self, batch: ImageBatch) -> list[Tensor]:
        return self.neck(self.backbone(self.backbone.normalize(batch.pixels, batch.sizes)))


def build_detector(
    classes: list[str],
    *,
    backbone: dict[str, Any] | None = None,
    neck: dict[str, Any] | None = None,
    rpn: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    norm_eps: float | None = None,
) -> TwoStageDetector:
    """Build a Faster R-CNN on a pyramid of features, by default with ResNet-50 and FPN; its weights are random.

    Args:
        classes: the name of each label.
        backbone: settings of ``Backbone``.
        neck: settings of ``FPN`` or, with ``name`` "simple_pyramid", of ``SimpleFeaturePyramid``, which a plain vision
            transformer needs.
        rpn: settings of ``RPN``.
        head: settings of ``FastRCNNHead``.
        norm_eps: epsilon of the backbone's BatchNorm layers; by default they keep theirs.

    Returns:
        The detector, whose ``settings`` are those given and the defaults of those not given.

    Raises:
        ValueError: there are no classes, or a part refuses its settings.

    Source: Lin et al., Feature Pyramid Networks, 2016, arXiv:1612.03144.
    """
    if not classes:
        raise ValueError("classes: expected the name of at least one class, got none")
    neck_name, neck_settings = _named_neck(neck or {})
    body = Backbone(**backbone or {})
    pyramid = NECKS[neck_name](body.channels, body.strides, **neck_settings)
    channels = pyramid.channels[0]
    pooled_strides = pyramid.strides[: len(pyramid.strides) - neck_settings["extra_levels"]]
    detector = TwoStageDetector(
        backbone=body,
        neck=pyramid,
        rpn=RPN(channels, pyramid.strides, **rpn or {}),
        head=FastRCNNHead(channels, pooled_strides, len(classes), **head or {}),
        norm_eps=norm_eps,
    )
    detector.classes = list(classes)
    settings = {
        "backbone": body.settings,
        "neck": {"name": neck_name, **neck_settings},
        "rpn": _with_defaults(RPN, rpn or {}),
        "head": _with_defaults(FastRCNNHead, head or {}),
        "norm_eps": norm_eps,
    }
    detector.settings = json.loads(json.dumps(settings))  # lists for tuples, as they come back from a file
    return detector


def _named_neck(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a neck and all its settings."""
    name = settings.get("name", "fpn")
    if name not in NECKS:
        raise ValueError(f"neck: expected the name {' or '.join(NECKS)}, got '{name}'")
    return name, _with_defaults(NECKS[name], {key: value for key, value in settings.items() if key != "name"})


def _with_defaults(part: type[nn.Module], given: dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a part, so that a saved detector does not change when a default does."""
    parameters = inspect.signature(part).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | given

"""A detector as one graph: nothing in it has a size that depends on what the images show."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.models.box_coding import decode_boxes
from visionlab.models.roi_head import MIN_DETECTION_SIDE
from visionlab.models.rpn import MIN_PROPOSAL_SIDE, UNIT_WEIGHTS, ProposalLimits
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.ops import nms_padded
from visionlab.precision import upcast

DIVISOR = 32  # of the height and width that the backbone sees, in pixels


class StaticDetections(NamedTuple):
    """Objects found in a batch of images: a fixed number of rows for each, of which the first ``counts`` are used.

    Args:
        boxes: ``(N, D, 4)`` ``x1, y1, x2, y2`` in pixels of the batch, best first, then zeros.
        scores: ``(N, D)`` in [0, 1], descending, then zeros.
        labels: ``(N, D)`` int64 in ``[0, classes)``, then -1.
        counts: ``(N,)`` int64, how many rows of an image are detections.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor


class StaticDetector(nn.Module):
    """Does what ``TwoStageDetector.detect`` does, in shapes that only the shape of the batch decides.

    Proposals and detections have fixed numbers, with scores of minus infinity where there are fewer. The levels of an
    image, and the classes, are sets of ``nms_padded``: no coordinate is shifted to keep them apart, so that none loses
    digits. Nothing branches on values: ``torch.export`` and ``torch.compile`` make one graph of it, which serves images
    of any size if the coarsest level of the example has at least two places along each side. The score that detections
    exceed is a buffer, so that the same graph can be checked at another.

    Args:
        detector: a copy of it is kept, in evaluation mode and without gradients.
        limits: how many proposals are looked at; by default the detector's ``rpn.test_limits``.

    Raises:
        ValueError: the head does not suppress boxes by hard NMS.
    """

    score_threshold: Tensor

    def __init__(self, detector: TwoStageDetector, *, limits: ProposalLimits | None = None) -> None:
        super().__init__()
        kind = detector.head.settings.nms
        if kind != "hard":
            raise ValueError(
                f"head.nms: expected hard for a graph of fixed shapes, got {kind}, which takes boxes one by one"
            )
        self.detector: TwoStageDetector = deepcopy(detector).requires_grad_(False)
        self.eval()
        self.proposal_limits = limits or detector.rpn.test_limits
        # With as many dimensions as scores: exporters merge constants of equal shape and value.
        threshold = torch.full((1, 1, 1), detector.head.settings.score_threshold)
        self.register_buffer("score_threshold", threshold, persistent=False)

    def forward(self, pixels: Tensor, sizes: Tensor) -> StaticDetections:
        """Find the objects.

        Args:
            pixels: ``(N, 3, H, W)`` uint8 RGB; images lie at the top left.
            sizes: ``(N, 2)`` int64, height and width of each image without padding.
        """
        backbone, neck, rpn = self.detector.backbone, self.detector.neck, self.detector.rpn
        images = backbone.normalize(pixels, sizes)
        height, width = ((side + DIVISOR - 1) // DIVISOR * DIVISOR for side in images.shape[-2:])
        images = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
        features = neck(backbone(images))
        predictions = rpn.predict([features[level] for level in neck.proposal_levels], (height, width))
        # The corner that no box lies beyond, in front of the dimensions that boxes have.
        corner = sizes.flip(1).repeat(1, 2).to(predictions.offsets[0].dtype)[:, None, None]
        proposals = self._propose(predictions.scores, predictions.offsets, predictions.anchors, corner)
        return self._detect([features[level] for level in neck.pooled_levels], proposals, corner)

    def _propose(self, scores: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], corner: Tensor) -> Tensor:
        """Return ``(N, P, 4)``: the best proposals of each image; those that are missing have no area."""
        candidates, proposals = self.proposal_limits
        best_scores, best_boxes = [], []
        for score, offset, anchor in zip(scores, offsets, anchors, strict=True):
            score, best = F.pad(score, (0, candidates), value=-torch.inf).topk(candidates, dim=1)
            best = torch.where(score.isfinite(), best, 0)  # a coarse level may have fewer anchors
            offset = offset.gather(1, best[..., None].expand(-1, -1, 4))
            best_scores.append(score)
            best_boxes.append(decode_boxes(offset, anchor[best], UNIT_WEIGHTS))
        score, boxes = torch.stack(best_scores, 1), _clip(torch.stack(best_boxes, 1), corner)
        usable = _has_sides(boxes, MIN_PROPOSAL_SIDE) & score.isfinite()
        score = _suppress(boxes, score, usable, self.detector.rpn.stage.nms_threshold).flatten(1)
        score, best = (ordered[:, :proposals] for ordered in score.sort(dim=1, descending=True, stable=True))
        boxes = boxes.flatten(1, 2).gather(1, best[..., None].expand(-1, -1, 4))
        return torch.where(score.isfinite()[..., None], boxes, 0)

    def _detect(self, features: list[Tensor], proposals: Tensor, corner: Tensor) -> StaticDetections:
        """Return what is in the proposals."""
        head = self.detector.head
        images, count = proposals.shape[:2]
        image = torch.arange(images, device=proposals.device, dtype=proposals.dtype)
        rois = torch.cat((image[:, None, None].expand(-1, count, 1), proposals), 2).flatten(0, 1)
        scores, offsets = head.predict(head.hidden(head.maps(features), rois))
        scores, offsets = (part.unflatten(0, (images, count)) for part in (upcast(scores), upcast(offsets)))

        scores = scores.softmax(dim=-1)[..., : head.num_classes].transpose(1, 2)
        boxes = decode_boxes(offsets, proposals[:, :, None], head.settings.box_weights).transpose(1, 2)
        boxes = _clip(boxes, corner).expand(-1, head.num_classes, -1, -1)  # (images, classes, proposals, 4)
        there = _has_sides(proposals, MIN_PROPOSAL_SIDE)[:, None]
        usable = (scores > self.score_threshold) & _has_sides(boxes, MIN_DETECTION_SIDE) & there
        scores = _suppress(boxes, scores, usable, head.settings.nms_threshold)

        # Of equal scores those of the first proposal come first, and of one proposal those of the first class.
        scores, rows = scores.transpose(1, 2).flatten(1).sort(dim=1, descending=True, stable=True)
        scores, rows = (ordered[:, : head.settings.max_detections] for ordered in (scores, rows))
        boxes = boxes.transpose(1, 2).flatten(1, 2).gather(1, rows[..., None].expand(-1, -1, 4))
        found = scores.isfinite()
        return StaticDetections(
            torch.where(found[..., None], boxes, 0),
            torch.where(found, scores, 0),
            torch.where(found, rows % head.num_classes, -1),
            found.sum(1),
        )


def _clip(boxes: Tensor, corner: Tensor) -> Tensor:
    """Return the part of each box that lies between the origin and a corner."""
    return torch.minimum(boxes.clamp(min=0), corner)


def _has_sides(boxes: Tensor, least: float) -> Tensor:
    """Say which boxes have sides of that length; one that is not finite has none."""
    return (boxes[..., 2:] - boxes[..., :2] >= least).all(dim=-1)


def _suppress(boxes: Tensor, scores: Tensor, usable: Tensor, iou_threshold: float) -> Tensor:
    """Return ``(N, sets, K)`` scores, minus infinity for boxes that are suppressed in their set or not usable."""
    # What is not usable comes last and lies in one place, so that it removes itself and nothing else.
    nowhere = (torch.arange(4, device=boxes.device) >= 2).to(boxes.dtype)
    scores = torch.where(usable, scores, -torch.inf)
    count = scores.shape[-1]
    indices, counts = nms_padded(torch.where(usable[..., None], boxes, nowhere), scores, iou_threshold, count)
    used = torch.arange(count, device=boxes.device) < counts[..., None]
    kept = torch.zeros_like(F.pad(indices, (0, 1))).scatter(-1, torch.where(used, indices, count), 1)[..., :count]
    return torch.where(kept > 0, scores, -torch.inf)

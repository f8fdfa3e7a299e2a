"""Region proposal network: where in an image an object of any class might be."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionlab import distributed
from visionlab.checks import check_above, check_at_least, check_in
from visionlab.models.anchors import cell_anchors, grid_anchors
from visionlab.models.box_coding import decode_boxes
from visionlab.models.box_losses import compare_boxes
from visionlab.models.eager import eager
from visionlab.models.matching import (
    BalancedSampler,
    CandidateSampler,
    Samples,
    draw_samples,
    match_boxes,
    split_crowds,
)
from visionlab.models.stage import StageSettings
from visionlab.ops import batched_nms
from visionlab.ops.boxes import clip_boxes_to_image
from visionlab.precision import upcast
from visionlab.seeding import derive_seed
from visionlab.settings import flat_settings
from visionlab.structures import ImageBatch

UNIT_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
MIN_PROPOSAL_SIDE = 1e-3  # in pixels
STAGE = StageSettings(positive_iou=0.7, samples_per_image=256, positive_fraction=0.5, nms_threshold=0.7)


class ProposalLimits(NamedTuple):
    """How many proposals to make of an image.

    Args:
        candidates: best anchors of each level before suppression.
        proposals: best proposals after it.
    """

    candidates: int
    proposals: int


class AnchorPredictions(NamedTuple):
    """What the first stage says of each anchor, level by level.

    Args:
        scores: ``(N, A)`` per level, before the sigmoid.
        offsets: ``(N, A, 4)`` per level.
        anchors: ``(A, 4)`` per level, in pixels.
    """

    scores: list[Tensor]
    offsets: list[Tensor]
    anchors: list[Tensor]


class RPN(nn.Module):
    """Scores and shifts the anchors of every level and keeps the best as proposals.

    Source: Ren et al., Faster R-CNN, 2015, arXiv:1506.01497; the defaults are torchvision's.

    Args:
        channels: channels of every level.
        strides: stride of each level in pixels, finest first.
        anchor_sizes: square roots of anchor areas in pixels, one list per level; by default one of 8 strides a level.
        anchor_ratios: heights over widths of the anchors.
        anchor_steps: distance of neighboring anchors: ``stride``, or ``image`` for the padded image's side over the
            feature map's, rounded down, which torchvision's weights were trained with.
        negative_iou: an anchor that overlaps every object less is background, unless it overlaps one more than all
            other anchors do.
        train_candidates: best anchors of each level before suppression, for losses.
        train_proposals: best proposals of each image after it, for losses.
        test_candidates: as ``train_candidates``, for detections.
        test_proposals: as ``train_proposals``, for detections.

    Attributes:
        sampler: what chooses the anchors that the losses look at; any ``CandidateSampler`` may take its place.
        train_limits: how many proposals losses are computed for.
        test_limits: how many proposals detections are made of.
    """

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        *,
        anchor_sizes: list[list[float]] | None = None,
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        anchor_steps: Literal["stride", "image"] = "stride",
        negative_iou: float = 0.3,
        stage: StageSettings = STAGE,
        train_candidates: int = 2000,
        train_proposals: int = 2000,
        test_candidates: int = 1000,
        test_proposals: int = 1000,
    ) -> None:
        super().__init__()
        check_above(0, anchor_ratios=anchor_ratios)
        check_in("[0, 1]", negative_iou=negative_iou)
        if negative_iou > stage.positive_iou:
            raise ValueError(f"negative_iou: expected at most positive_iou, {stage.positive_iou}, got {negative_iou}")
        check_at_least(1, train_candidates=train_candidates, train_proposals=train_proposals)
        check_at_least(1, test_candidates=test_candidates, test_proposals=test_proposals)
        sizes = [[8.0 * stride] for stride in strides] if anchor_sizes is None else anchor_sizes
        if len(sizes) != len(strides) or len({len(level) for level in sizes}) != 1:
            raise ValueError(
                f"anchor_sizes: expected {len(strides)} lists of one length, one per level of strides {strides},"
                f" got {sizes}"
            )
        self.strides = list(strides)
        for i, level in enumerate(sizes):
            check_above(0, anchor_sizes=level)
            self.register_buffer(f"cell_anchors_{i}", cell_anchors(level, anchor_ratios), persistent=False)
        self.anchor_steps = anchor_steps
        self.stage, self.negative_iou = stage, negative_iou
        self.sampler: CandidateSampler = BalancedSampler(stage.samples_per_image, stage.positive_fraction)
        self.train_limits = ProposalLimits(train_candidates, train_proposals)
        self.test_limits = ProposalLimits(test_candidates, test_proposals)

        anchors_per_cell = len(sizes[0]) * len(anchor_ratios)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.offsets = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        for layer in (self.conv, self.objectness, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def predict(self, features: list[Tensor], padded_size: tuple[int, int]) -> AnchorPredictions:
        """Look at every anchor; what both ``losses`` and ``propose`` start from.

        Args:
            features: one ``(N, channels, H, W)`` map per stride.
            padded_size: height and width of the batch in pixels, padding included.
        """
        hidden = [F.relu(self.conv(feature), inplace=True) for feature in features]
        scores = [self.objectness(level).permute(0, 2, 3, 1).flatten(1) for level in hidden]
        offsets = [self.offsets(level).permute(0, 2, 3, 1).reshape(level.shape[0], -1, 4) for level in hidden]
        # Boxes and losses need more digits than autocast's types have.
        return AnchorPredictions(
            [upcast(level) for level in scores],
            [upcast(level) for level in offsets],
            self._anchors(features, padded_size),
        )

    def _anchors(self, features: list[Tensor], padded_size: tuple[int, int]) -> list[Tensor]:
        """Return the ``(A, 4)`` anchors of each level."""
        height, width = padded_size
        anchors = []
        for i, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            rows, columns = feature.shape[-2:]
            step = (stride, stride) if self.anchor_steps == "stride" else (height // rows, width // columns)
            anchors.append(grid_anchors(self.get_buffer(f"cell_anchors_{i}"), (rows, columns), step))
        return anchors

    @eager
    @torch.no_grad()
    def propose(
        self, predictions: AnchorPredictions, sizes: list[tuple[int, int]], limits: ProposalLimits
    ) -> list[Tensor]:
        """Turn the best anchors into proposals.

        Args:
            predictions: of ``predict``.
            sizes: height and width of each image in pixels, without padding.
            limits: how many proposals to make: ``train_limits``, ``test_limits`` or others.

        Returns:
            ``(P, 4)`` per image, in pixels, inside the image, best first; without gradient, float32 or, of a network in
            double precision, float64.
        """
        best_scores, best_boxes, levels = [], [], []
        for i, (score, offset, anchor) in enumerate(zip(*predictions, strict=True)):
            score, best = score.topk(min(limits.candidates, score.shape[1]), dim=1)
            offset = offset.gather(1, best[..., None].expand(-1, -1, 4))
            best_scores.append(score)
            best_boxes.append(decode_boxes(offset, anchor[best], UNIT_WEIGHTS))
            levels.append(torch.full_like(best[0], i))
        level = torch.cat(levels)
        proposals = []
        for score, boxes, size in zip(torch.cat(best_scores, dim=1), torch.cat(best_boxes, dim=1), sizes, strict=True):
            boxes = clip_boxes_to_image(boxes, size)
            # A comparison with NaN is False, so boxes that are not finite are dropped with those that have no area.
            usable = (boxes[:, 2:] - boxes[:, :2] >= MIN_PROPOSAL_SIDE).all(dim=1) & score.isfinite()
            usable_rows = usable.nonzero().squeeze(1)
            boxes = boxes[usable_rows]
            kept = batched_nms(boxes, score[usable_rows], level[usable_rows], self.stage.nms_threshold)
            proposals.append(boxes[kept[: limits.proposals]])
        return proposals

    def losses(self, predictions: AnchorPredictions, batch: ImageBatch) -> dict[str, Tensor]:
        """Compare the anchors with the targets.

        Args:
            predictions: of ``predict`` for the same batch.
            batch: targets and seeds.

        Returns:
            ``objectness`` and ``boxes``, scalars.
        """
        scores, offsets = torch.cat(predictions.scores, dim=1), torch.cat(predictions.offsets, dim=1)
        anchors = torch.cat(predictions.anchors)
        images = self._sample(anchors, batch)
        chosen = torch.cat([image.chosen for image in images])
        positive = torch.cat([image.positive for image in images])
        scores = torch.cat([score[image.rows] for score, image in zip(scores, images, strict=True)])
        offsets = torch.cat([offset[image.rows] for offset, image in zip(offsets, images, strict=True)])
        references = torch.cat([anchors[image.rows] for image in images])
        boxes = compare_boxes(
            self.stage.box_loss,
            offsets,
            references,
            torch.cat([image.boxes for image in images]),
            positive,
            weights=UNIT_WEIGHTS,
            beta=self.stage.smooth_l1_beta,
        )

        count = distributed.average(chosen.sum(dtype=torch.float32)).clamp(min=1)
        objectness = F.binary_cross_entropy_with_logits(scores, positive.to(scores.dtype), reduction="none")
        return {
            "objectness": (objectness * chosen).sum() / count,
            "boxes": boxes.sum() / count,
        }

    @eager
    @torch.no_grad()
    def _sample(self, anchors: Tensor, batch: ImageBatch) -> list[Samples]:
        """Choose the ``(A, 4)`` anchors that the losses look at, for each image, and find what they stand for."""
        images = []
        for (objects, crowds), seed in zip(split_crowds(batch.targets), batch.seeds, strict=True):
            matches = match_boxes(
                anchors,
                objects.boxes,
                crowds,
                positive_iou=self.stage.positive_iou,
                negative_iou=self.negative_iou,
                keep_best=True,
            )
            images.append(draw_samples(matches, objects, self.sampler, derive_seed(seed, "rpn")))
        return images

"""What every second stage shares: choosing RoIs, comparing them with the targets, turning scores into detections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionlab import distributed
from visionlab.checks import check_at_least
from visionlab.models.box_coding import decode_boxes
from visionlab.models.box_losses import compare_boxes
from visionlab.models.eager import eager
from visionlab.models.evaluation import evaluating
from visionlab.models.head_settings import HeadSettings
from visionlab.models.matching import (
    BalancedSampler,
    CandidateSampler,
    Samples,
    draw_samples,
    match_boxes,
    split_crowds,
)
from visionlab.models.ohem import all_candidates, hardest
from visionlab.models.suppression import suppress
from visionlab.ops.boxes import clip_boxes_to_image
from visionlab.precision import upcast
from visionlab.seeding import derive_seed
from visionlab.settings import flat_settings
from visionlab.structures import Detections, ImageBatch

MIN_DETECTION_SIDE = 1e-2  # in pixels
RAN_AT_ONCE = 512  # RoIs, when detections are made on the CPU


class RoIHead(nn.Module, ABC):
    """Classifies proposals and refines their boxes; a subclass says how, in ``maps``, ``hidden`` and ``predict``.

    Background is the last of the ``num_classes + 1`` scores, so that a label is the index of its score.

    Source: Girshick, Fast R-CNN, 2015, arXiv:1504.08083.

    A row of the table ``HEADS`` is called with ``channels``, ``strides`` and ``num_classes``, and with its settings.
    One that says ``needs_stage`` is given a ``RoIStage`` of the backbone as fourth part.

    Args:
        channels: channels of every level.
        strides: stride of each level to pool from in pixels, finest first.
        num_classes: object classes, without background.
        settings: how RoIs are compared with the objects, and which are detections.

    Attributes:
        box_sets: how many boxes are predicted of a RoI: 1 if classes share it, else ``num_classes``.
        sampler: what chooses the RoIs that the losses look at, or that ``ohem`` keeps the hardest of; any
            ``CandidateSampler`` may take its place.
    """

    needs_stage: ClassVar[bool] = False

    @flat_settings
    def __init__(
        self, channels: int, strides: list[int], num_classes: int, *, settings: HeadSettings = HeadSettings()
    ) -> None:
        super().__init__()
        check_at_least(1, num_classes=num_classes)
        self.channels, self.strides, self.num_classes = channels, list(strides), num_classes
        self.settings = settings
        self.box_sets = 1 if settings.class_agnostic else num_classes
        self.sampler: CandidateSampler = (
            all_candidates if settings.ohem else BalancedSampler(settings.samples_per_image, settings.positive_fraction)
        )

    @abstractmethod
    def class_blocks(self) -> dict[str, int]:
        """Say which tensors hold something of each class, so that a head of other classes can take over some of them.

        Returns:
            For the name of each tensor whose first dimension is one block of rows for each class, in the order of
            labels, how many blocks come after these: 1 where background has one, else 0. All blocks are of one size: 1
            row for a class score, 4 for its box, k * k for position-sensitive score maps. What classes share, as
            boxes where they are class-agnostic, is none of these tensors.
        """

    def layers(self) -> list[nn.Module]:
        """Return the modules that the head runs: itself, and those that are another's."""
        return [self]

    def maps(self, features: list[Tensor]) -> list[Tensor]:
        """Compute what RoIs are pooled from: once for a batch, however many RoIs there are.

        Args:
            features: one ``(N, C, H, W)`` map per level, finest first.

        Returns:
            The maps that ``hidden`` takes; by default the features themselves.
        """
        return features

    @abstractmethod
    def hidden(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """Return what each RoI looks like, before anything is predicted from it.

        Args:
            maps: of ``maps``.
            rois: ``(K, 5)``: index of the image in the batch, then the box in pixels.

        Returns:
            ``(K, ...)``, of whatever form ``predict`` takes.
        """

    @abstractmethod
    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes and boxes of RoIs.

        Args:
            hidden: ``(K, ...)`` of ``hidden``.

        Returns:
            ``(K, num_classes + 1)`` scores before the softmax, background last, and ``(K, box_sets, 4)`` box offsets.
        """

    def losses(self, features: list[Tensor], proposals: list[Tensor], batch: ImageBatch) -> dict[str, Tensor]:
        """Compare a sample of the proposals with the targets.

        Args:
            features: one ``(N, C, H, W)`` map per level, finest first.
            proposals: ``(P, 4)`` per image, in pixels.
            batch: targets and seeds.

        Returns:
            ``classes`` and ``boxes``, scalars.
        """
        maps = self.maps(features)
        images, rois = self.sample(proposals, batch)
        if self.settings.ohem:
            images, rois = self._hardest(maps, images, rois)
        chosen = torch.cat([image.chosen for image in images])
        count = distributed.average(chosen.sum(dtype=torch.float32)).clamp(min=1)
        classes, boxes = self._compare(maps, images, rois)
        return {"classes": (classes * chosen).sum() / count, "boxes": boxes.sum() / count}

    def detect(self, features: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Turn proposals into detections.

        Args:
            features: one ``(N, C, H, W)`` map per level, finest first.
            proposals: ``(P, 4)`` per image, in pixels.
            sizes: height and width of each image in pixels, without padding.

        Returns:
            One ``Detections`` per image, inside the image, in pixels of the batch.
        """
        return [self.suppress(found) for found in self.candidates(features, proposals, sizes)]

    def candidates(
        self, features: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[Detections]:
        """Return what ``suppress`` makes detections of; takes what ``detect`` takes.

        Returns:
            One ``Detections`` per image, in no order: each class of each proposal that scores enough.
        """
        rois = to_rois(proposals)
        maps = self.maps(features)
        # Pooled RoIs may take more memory than all features do. A GPU, which would wait for more calls, has the room.
        whole = rois.device.type != "cpu" or torch.compiler.is_compiling()
        groups = [rois] if whole else rois.split(RAN_AT_ONCE)
        scores, offsets = self.predict(torch.cat([self.hidden(maps, group) for group in groups]))
        return self.decode(upcast(scores), upcast(offsets), rois, sizes)

    @eager
    @torch.no_grad()
    def sample(self, proposals: list[Tensor], batch: ImageBatch) -> tuple[list[Samples], Tensor]:
        """Choose the RoIs that the losses look at, and find what they stand for.

        Args:
            proposals: ``(P, 4)`` per image, in pixels.
            batch: targets and seeds.

        Returns:
            Each image's samples of its proposals and objects, and the ``(K, 5)`` RoIs of all images.
        """
        images, boxes = [], []
        iou = self.settings.positive_iou
        for boxes_in_image, (objects, crowds), seed in zip(
            proposals, split_crowds(batch.targets), batch.seeds, strict=True
        ):
            # The objects themselves are proposals too, or early in training nothing would be positive.
            candidates = torch.cat((boxes_in_image, objects.boxes))
            matches = match_boxes(candidates, objects.boxes, crowds, positive_iou=iou, negative_iou=iou)
            images.append(draw_samples(matches, objects, self.sampler, derive_seed(seed, "head")))
            boxes.append(candidates[images[-1].rows])
        return images, to_rois(boxes)

    @eager
    @torch.no_grad()
    def _hardest(self, maps: list[Tensor], images: list[Samples], rois: Tensor) -> tuple[list[Samples], Tensor]:
        """Return the samples that the head is worst at, and their ``(K, 5)`` RoIs."""
        with evaluating(nn.ModuleList(self.layers())):  # a look that leaves no trace in BatchNorm's statistics
            classes, boxes = self._compare(maps, images, rois)
        if torch.is_autocast_enabled(rois.device.type):
            torch.clear_autocast_cache()  # the weights narrowed here have no gradient
        count, nms_threshold = self.settings.samples_per_image, self.settings.ohem_nms_threshold
        return hardest(images, rois, classes + boxes.sum(dim=1), count, nms_threshold)

    def _compare(self, maps: list[Tensor], images: list[Samples], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ``(K,)`` losses of classes and the ``(K, 4 or 1)`` losses of boxes, 0 where not positive."""
        positive = torch.cat([image.positive for image in images])
        boxes = torch.cat([image.boxes for image in images])
        labels = torch.cat([image.labels for image in images])
        scores, offsets = map(upcast, self.predict(self.hidden(maps, rois)))
        own_offsets = offsets[torch.arange(len(labels), device=labels.device), labels.clamp(0, offsets.shape[1] - 1)]
        classes = F.cross_entropy(scores, torch.where(positive, labels, self.num_classes), reduction="none")
        return classes, compare_boxes(
            self.settings.box_loss,
            own_offsets,
            rois[:, 1:],
            boxes,
            positive,
            weights=self.settings.box_weights,
            beta=self.settings.smooth_l1_beta,
        )

    @torch.no_grad()
    def decode(self, scores: Tensor, offsets: Tensor, rois: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Return the boxes of the predictions that score enough.

        Args:
            scores: ``(K, num_classes + 1)`` before the softmax.
            offsets: ``(K, box_sets, 4)``.
            rois: ``(K, 5)``: index of the image in the batch, then the box in pixels.
            sizes: height and width of each image in pixels, without padding.

        Returns:
            One ``Detections`` per image, inside the image, in no order, without gradient.
        """
        scores = scores.softmax(dim=1)[:, : self.num_classes]
        # A score that is NaN is not above the threshold.
        rows, labels = torch.where(scores > self.settings.score_threshold)
        offsets = offsets[rows, labels.clamp(max=offsets.shape[1] - 1)]
        boxes = decode_boxes(offsets, rois[rows, 1:], self.settings.box_weights)
        scores, image_of_row = scores[rows, labels], rois[rows, 0]
        detections = []
        for i, size in enumerate(sizes):
            clipped = clip_boxes_to_image(boxes, size)
            usable = (image_of_row == i) & (clipped[:, 2:] - clipped[:, :2] >= MIN_DETECTION_SIDE).all(dim=1)
            own = usable.nonzero().squeeze(1)
            detections.append(Detections(clipped[own], scores[own], labels[own]))
        return detections

    @torch.no_grad()
    def suppress(self, candidates: Detections) -> Detections:
        """Keep of alike candidates of one image the best, and of those the ``max_detections`` best.

        Args:
            candidates: in any order.

        Returns:
            The detections, best first.
        """
        settings = self.settings
        kept, scores = suppress(
            settings.nms,
            candidates.boxes,
            candidates.scores,
            candidates.labels,
            iou_threshold=settings.nms_threshold,
            sigma=settings.nms_sigma,
            score_threshold=settings.score_threshold,
        )
        kept, scores = kept[: settings.max_detections], scores[: settings.max_detections]
        return Detections(candidates.boxes[kept], scores, candidates.labels[kept])


def to_rois(boxes: list[Tensor]) -> Tensor:
    """Return the boxes of all images as RoIs.

    Args:
        boxes: ``(P, 4)`` per image, in pixels.

    Returns:
        ``(K, 5)``: index of the image, then the box.
    """
    return torch.cat([F.pad(boxes_in_image, (1, 0), value=i) for i, boxes_in_image in enumerate(boxes)])

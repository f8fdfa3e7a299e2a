"""The second stage of Faster R-CNN: pooled features through two hidden layers."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.checks import check_above, check_at_least
from visionlab.models.roi_head import RoIHead
from visionlab.models.roi_pooling import pool_rois


class FastRCNNHead(RoIHead):
    """Pools every RoI to one size and classifies it with two hidden layers.

    Source: Girshick, Fast R-CNN, 2015, arXiv:1504.08083; the defaults are torchvision's.

    Args:
        channels: channels of every level.
        strides: stride of each level to pool from in pixels, finest first, each twice the one before.
        num_classes: object classes, without background.
        fc_channels: width of the two hidden layers.
        pool_size: bins on each side of a pooled RoI.
        sampling_ratio: RoIAlign's samples on each side of a bin; 0 adapts them to the RoI.
        aligned: shift the RoIs by half a location, as pixel centers ask for (detectron2 does, torchvision does not).
        canonical_size: a RoI of this side in pixels is pooled from stride 16, of twice the side from stride 32.
        positive_iou: a proposal that overlaps an object at least so much is positive, any other is background.
        samples_per_image: RoIs that the losses look at.
        positive_fraction: largest share of positives among them.
        box_weights: factors of the box offsets ``dx, dy, dw, dh``.
        smooth_l1_beta: where the box loss turns from square to linear.
        score_threshold: detections must score more.
        nms_threshold: of two detections of one class with a higher IoU, the lower score goes.
        max_detections: best detections of an image that stay.
    """

    def __init__(
        self,
        channels: int,
        strides: list[int],
        num_classes: int,
        *,
        fc_channels: int = 1024,
        pool_size: int = 7,
        sampling_ratio: int = 2,
        aligned: bool = False,
        canonical_size: float = 224.0,
        positive_iou: float = 0.5,
        samples_per_image: int = 512,
        positive_fraction: float = 0.25,
        box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        smooth_l1_beta: float = 1 / 9,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__(
            num_classes,
            positive_iou=positive_iou,
            samples_per_image=samples_per_image,
            positive_fraction=positive_fraction,
            box_weights=box_weights,
            smooth_l1_beta=smooth_l1_beta,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )
        check_at_least(1, fc_channels=fc_channels, pool_size=pool_size)
        check_at_least(0, sampling_ratio=sampling_ratio)
        check_above(0, canonical_size=canonical_size)
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"strides: expected each to be twice the one before, got {strides}")
        self.strides = list(strides)
        self.pool_size = pool_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size

        self.fc1 = nn.Linear(channels * pool_size**2, fc_channels)
        self.fc2 = nn.Linear(fc_channels, fc_channels)
        self.classes = nn.Linear(fc_channels, num_classes + 1)
        self.offsets = nn.Linear(fc_channels, num_classes * 4)
        for hidden in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(hidden.weight, a=1)
        # Small last layers: all classes start equally likely and all boxes where the proposals are.
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.offsets.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.classes, self.offsets):
            nn.init.zeros_(layer.bias)

    def class_blocks(self) -> dict[str, int]:
        """Return the last two layers; see ``RoIHead.class_blocks``."""
        return {"classes.weight": 1, "classes.bias": 1, "offsets.weight": 0, "offsets.bias": 0}

    def hidden(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Return ``(K, fc_channels)``; see ``RoIHead.hidden``. Maps beyond those of ``strides`` are not looked at."""
        pooled = pool_rois(
            features[: len(self.strides)],
            self.strides,
            rois,
            output_size=self.pool_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical_size,
        )
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes and boxes, one per class; see ``RoIHead.predict``."""
        return self.classes(hidden), self.offsets(hidden).unflatten(1, (self.num_classes, 4))

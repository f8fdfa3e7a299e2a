"""Detection: a two-stage detector trained on labelled boxes, and measured on others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from visionlab import distributed
from visionlab.data.samples import collate_images
from visionlab.eval.detection import DetectionEvaluator
from visionlab.eval.drawing import draw_boxes, draw_comparison
from visionlab.eval.offset_drawing import best_detections, draw_offsets
from visionlab.models.merged_views import detect_in_views
from visionlab.models.sampling_places import has_deformable_parts, sampling_places
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import ImageBatch
from visionlab.train.task import Task


class DetectTask(Task):
    """Train a detector.

    Args:
        detector: what learns.
    """

    def __init__(self, detector: TwoStageDetector):
        super().__init__()
        self.detector = detector

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the detector's named losses of a batch with targets."""
        return self.detector.losses(batch)

    def compilable(self) -> list[nn.Module]:
        """Return the backbone and the neck."""
        return [self.detector.backbone, self.detector.neck]


def detect_all(
    detector: TwoStageDetector,
    batches: Iterable[ImageBatch] | Iterable[Sequence[ImageBatch]],
    evaluator: DetectionEvaluator,
    device: torch.device,
    *,
    flip: bool = False,
    pictures: int = 12,
    threshold: float = 0.3,
) -> list[np.ndarray]:
    """Detect the objects of a dataset and hand them to an evaluator.

    Args:
        detector: in any mode.
        batches: this process's share of the dataset, with targets; or the same images at several sizes together.
        evaluator: takes the detections.
        device: where the detector is.
        flip: also look at the mirror image of each.
        pictures: how many images to draw.
        threshold: the least score that is drawn.

    Returns:
        ``(H, W, 3)`` uint8 pictures of ground truth beside detections, of the main process's first images.
    """
    drawn: list[np.ndarray] = []
    for item in batches:
        views = [item] if isinstance(item, ImageBatch) else item
        moved = [view.to(device, non_blocking=True) for view in views]
        batch, found = views[0], [part.to("cpu") for part in detect_in_views(detector, moved, flip=flip)]
        evaluator.add(batch, found)
        if distributed.is_main():
            for row in range(min(len(batch), pictures - len(drawn))):
                height, width = batch.sizes[row]
                image = batch.pixels[row, :, :height, :width].permute(1, 2, 0).numpy()
                drawn.append(
                    draw_comparison(image, batch.targets[row], found[row], detector.classes, threshold=threshold)
                )
    return drawn


def draw_sampling(
    detector: TwoStageDetector,
    batches: Iterable[ImageBatch],
    device: torch.device,
    *,
    pictures: int = 4,
    threshold: float = 0.3,
) -> list[np.ndarray]:
    """Draw where the deformable parts of a detector look for what it finds.

    Args:
        detector: in any mode.
        batches: images, of which the first are drawn.
        device: where the detector is.
        pictures: how many images to draw; one in which nothing is found is passed over.
        threshold: the least score that is drawn; where nothing reaches it, the best detection is.

    Returns:
        ``(H, W, 3)`` uint8 pictures; none of a detector without such parts.
    """
    drawn: list[np.ndarray] = []
    if not has_deformable_parts(detector):
        return drawn
    left = pictures
    for batch in batches:
        found = [part.to("cpu") for part in detector.detect(batch.to(device))]
        for row in range(min(len(batch), left)):
            best = best_detections(found[row], threshold)
            if len(best):
                height, width = batch.sizes[row]
                pixels = batch.pixels[row, :, :height, :width]
                places = sampling_places(detector, collate_images([pixels]).to(device), best.boxes, best.labels)
                image = pixels.permute(1, 2, 0).numpy()
                labels, scores = best.labels.tolist(), best.scores.tolist()
                boxes = draw_boxes(image, best.boxes, labels, detector.classes, scores=scores)
                drawn.append(draw_offsets(image, boxes, best.boxes, places.taps, places.layers, places.bins))
        left -= len(batch)
        if left <= 0:
            break
    return drawn

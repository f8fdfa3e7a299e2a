"""Detection in several views of each image, merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.ops.boxes import clip_boxes_to_image
from visionlab.structures import Detections, ImageBatch


@torch.no_grad()
def detect_in_views(detector: TwoStageDetector, batches: Sequence[ImageBatch], *, flip: bool) -> list[Detections]:
    """Find the objects in several views of each image.

    What scores enough in any view is brought to the pixels of the first batch, and put together before boxes that are
    alike are suppressed, once for all views. So an object that is seen in several views is one detection: with plain
    NMS the box of the best score, and that score. Scores are not averaged, because a view may well miss an object.

    Args:
        detector: in any mode.
        batches: the same images at one or more sizes.
        flip: also look at the mirror image of each.

    Returns:
        The detections of each image, best first, in pixels of the first batch and inside the image.

    Raises:
        ValueError: the batches are not of the same images.

    Source: as in detectron2's ``GeneralizedRCNNWithTTA``, where boxes are suppressed in each view before as well.
    """
    first = batches[0]
    if len(batches) == 1 and not flip:
        return detector.detect(first)
    for batch in batches[1:]:
        if batch.ids != first.ids or len(batch) != len(first):
            raise ValueError(f"batches: expected the same images at each size, got ids {first.ids} and {batch.ids}")
    found: list[list[Detections]] = [[] for _ in range(len(first))]
    for batch in batches:
        for mirror in (False, True) if flip else (False,):
            candidates = detector.candidates(_mirrored(batch) if mirror else batch)
            for row, part in enumerate(candidates):
                found[row].append(_moved(part, batch.sizes[row], first.sizes[row], mirror))
    return [detector.head.suppress(_together(parts)) for parts in found]


def _mirrored(batch: ImageBatch) -> ImageBatch:
    pixels = batch.pixels.clone()
    for image, (_, width) in zip(pixels, batch.sizes, strict=True):
        image[:, :, :width] = image[:, :, :width].flip(-1)
    return replace(batch, pixels=pixels)


def _moved(found: Detections, size: tuple[int, int], target: tuple[int, int], mirror: bool) -> Detections:
    """Return detections in an image of one size, or in its mirror image, as those in the image at another size."""
    boxes = found.boxes
    if mirror:
        left, top, right, bottom = boxes.unbind(-1)
        boxes = torch.stack((size[1] - right, top, size[1] - left, bottom), dim=-1)
    if size != target:
        scale = boxes.new_tensor([target[1] / size[1], target[0] / size[0]] * 2)
        boxes = clip_boxes_to_image(boxes * scale, target)
    return replace(found, boxes=boxes)


def _together(parts: list[Detections]) -> Detections:
    return Detections(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
    )

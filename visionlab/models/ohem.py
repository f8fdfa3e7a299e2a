"""Online hard example mining: the losses look at the RoIs that the head is worst at."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.models.matching import IGNORED, Samples
from visionlab.ops import nms_padded


def all_candidates(matches: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Choose every candidate that is not ignored; a ``CandidateSampler``."""
    return torch.arange(len(matches), device=matches.device), matches != IGNORED


def hardest(
    images: list[Samples], rois: Tensor, losses: Tensor, count: int, nms_threshold: float
) -> tuple[list[Samples], Tensor]:
    """Keep the RoIs of each image with the largest losses, and of those that lie on each other the worst alone.

    Args:
        images: the RoIs of each image that may be kept.
        rois: ``(K, 5)`` of all images: index of the image in the batch, then the box in pixels.
        losses: ``(K,)``, at least 0.
        count: how many of an image are kept at most.
        nms_threshold: a RoI that overlaps one with a larger loss by a higher IoU goes.

    Returns:
        What stays of each image, worst first, and its RoIs. Where fewer than ``count`` stay, RoIs that are not
        ``chosen`` fill up.

    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, 2016,
    arXiv:1604.03540, section 4.2.
    """
    sizes = [len(image.rows) for image in images]
    pairs = [
        _hardest(image, own_rois, loss, count, nms_threshold)
        for image, own_rois, loss in zip(images, rois.split(sizes), losses.split(sizes), strict=True)
    ]
    return [samples for samples, _ in pairs], torch.cat([kept for _, kept in pairs])


def _hardest(image: Samples, rois: Tensor, losses: Tensor, count: int, nms_threshold: float) -> tuple[Samples, Tensor]:
    # A loss that is not a number is the worst of all: the run is to hear of it.
    hardness = torch.where(image.chosen, losses.nan_to_num(torch.inf), -1)
    kept, found = nms_padded(rois[:, 1:], hardness, nms_threshold, min(count, len(rois)))
    chosen = (torch.arange(len(kept), device=kept.device) < found) & image.chosen[kept]
    positive = chosen & image.positive[kept]
    return Samples(image.rows[kept], chosen, positive, image.boxes[kept], image.labels[kept]), rois[kept]

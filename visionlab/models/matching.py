"""Which anchors and proposals stand for which objects, and which of them a loss looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from visionlab.checks import check_at_least, check_in
from visionlab.ops.boxes import box_area, box_intersection, box_iou
from visionlab.structures import Target

BACKGROUND = -1
IGNORED = -2


def split_crowds(targets: list[Target]) -> list[tuple[Target, Tensor]]:
    """Return for each image its objects and the boxes of its crowd regions.

    Args:
        targets: the labelled objects of each image.

    Returns:
        One ``(objects, (K, 4) crowd boxes)`` per image; no object is a crowd.
    """
    if not torch.stack([target.crowd.any() for target in targets]).any():  # one wait for the device, not one per image
        return [(target, target.boxes[:0]) for target in targets]
    pairs = []
    for target in targets:
        single = ~target.crowd
        objects = Target(target.boxes[single], target.labels[single], target.crowd[single])
        pairs.append((objects, target.boxes[target.crowd]))
    return pairs


def match_boxes(
    candidates: Tensor,
    boxes: Tensor,
    crowds: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    keep_best: bool = False,
    crowd_overlap: float = 0.5,
) -> Tensor:
    """Return the object that each anchor or proposal stands for.

    A candidate belongs to the object it overlaps most if their IoU reaches ``positive_iou``; it is background below
    ``negative_iou`` and ignored between the two, and where at least ``crowd_overlap`` of its area is in a crowd region.

    Args:
        candidates: ``(A, 4)`` anchors or proposals, in pixels.
        boxes: ``(G, 4)`` objects, in pixels.
        crowds: ``(K, 4)`` crowd regions, in pixels.
        positive_iou: in ``[0, 1]``.
        negative_iou: in ``[0, positive_iou]``.
        keep_best: also make positive, at any IoU above 0, the candidates that overlap an object more than all others
            do, ties included; each then belongs to the object that it overlaps most itself.
        crowd_overlap: share of a candidate's own area, in ``(0, 1]``.

    Returns:
        ``(A,)`` int64: a row of ``boxes``, ``BACKGROUND`` or ``IGNORED``.

    Source: Ren et al., Faster R-CNN, 2015, arXiv:1506.01497, section 3.1.2.
    """
    if len(boxes) == 0 or len(candidates) == 0:
        matches = candidates.new_full((len(candidates),), BACKGROUND, dtype=torch.int64)
    else:
        iou = box_iou(boxes, candidates).nan_to_num(0.0)  # boxes without area overlap nothing
        best_iou, best_box = iou.max(dim=0)
        positive = best_iou >= positive_iou
        if keep_best:
            highest = iou.max(dim=1, keepdim=True).values
            positive |= ((iou == highest) & (highest > 0)).any(dim=0)
        matches = torch.where(best_iou < negative_iou, BACKGROUND, IGNORED)
        matches = torch.where(positive, best_box, matches)
    if len(crowds) == 0:
        return matches
    in_crowd = (box_intersection(crowds, candidates) >= crowd_overlap * box_area(candidates)).any(dim=0)
    return torch.where(in_crowd & (matches == BACKGROUND), IGNORED, matches)


class CandidateSampler(Protocol):
    """Chooses the candidates of one image that a loss looks at."""

    def __call__(self, matches: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Choose candidates.

        Args:
            matches: ``(A,)`` as ``match_boxes`` returns them.
            seed: all randomness derives from it.

        Returns:
            ``(S,)`` int64 rows of ``matches`` and ``(S,)`` bool, which of these rows count; the others fill up to a
            size that is known without waiting for the device.
        """
        ...


class BalancedSampler:
    """Chooses positives up to a share of the samples and fills up with background, both uniformly.

    Args:
        samples_per_image: candidates to choose.
        positive_fraction: the largest share of positives, in ``[0, 1]``.
    """

    def __init__(self, samples_per_image: int, positive_fraction: float) -> None:
        check_at_least(1, samples_per_image=samples_per_image)
        check_in("[0, 1]", positive_fraction=positive_fraction)
        self.samples = samples_per_image
        self.max_positives = int(samples_per_image * positive_fraction)

    def __call__(self, matches: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Choose candidates; see ``CandidateSampler``."""
        generator = torch.Generator(matches.device).manual_seed(seed)
        keys = torch.rand(len(matches), generator=generator, device=matches.device)
        size = min(self.samples, len(matches))
        # The largest random keys of a kind are a uniform choice of it; -1 marks rows of another kind.
        positive_keys, positives = keys.masked_fill(matches < 0, -1).topk(min(self.max_positives, size))
        negative_keys, negatives = keys.masked_fill(matches != BACKGROUND, -1).topk(size)
        room = self.samples - (positive_keys >= 0).sum()
        chosen_negatives = (negative_keys >= 0) & (torch.arange(size, device=matches.device) < room)
        indices, chosen = torch.cat((positives, negatives)), torch.cat((positive_keys >= 0, chosen_negatives))
        first = chosen.to(torch.uint8).argsort(descending=True, stable=True)[:size]
        return indices[first], chosen[first]


@dataclass
class Samples:
    """The candidates of one image that a loss looks at, and what they stand for.

    Args:
        rows: ``(S,)`` int64, which candidates.
        chosen: ``(S,)`` bool; the other rows only fill up and must not count.
        positive: ``(S,)`` bool, chosen and standing for an object.
        boxes: ``(S, 4)``, the object's box; zeros where there is none.
        labels: ``(S,)`` int64, the object's label; ``BACKGROUND`` where there is none.
    """

    rows: Tensor
    chosen: Tensor
    positive: Tensor
    boxes: Tensor
    labels: Tensor


def draw_samples(matches: Tensor, objects: Target, sampler: CandidateSampler, seed: int) -> Samples:
    """Choose candidates of one image and look up what they stand for.

    Args:
        matches: ``(A,)`` as ``match_boxes`` returns them for ``objects``.
        objects: the labelled objects of the image.
        sampler: chooses the candidates.
        seed: all randomness derives from it.

    Returns:
        The chosen candidates.
    """
    rows, chosen = sampler(matches, seed)
    # Row -1 of the padded tensors is the object of those who have none.
    match = matches[rows].clamp(min=BACKGROUND)
    boxes = F.pad(objects.boxes, (0, 0, 0, 1))[match]
    labels = F.pad(objects.labels, (0, 1), value=BACKGROUND)[match]
    return Samples(rows, chosen, chosen & (match >= 0), boxes, labels)

"""What both stages of a detector are told: which candidates stand for objects, and which of alike boxes stay."""

from __future__ import annotations

from dataclasses import dataclass

from visionlab.checks import check_at_least, check_in
from visionlab.settings import Settings


@dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """How a stage compares its candidates, anchors or proposals, with the objects, and drops boxes that are alike.

    Args:
        positive_iou: a candidate that overlaps an object at least so much is positive.
        samples_per_image: candidates that the losses look at.
        positive_fraction: largest share of positives among them.
        smooth_l1_beta: where the box loss turns from square to linear; 0 is plain L1.
        nms_threshold: of two boxes of one class, or of one level for proposals, with a higher IoU, the lower score
            goes.
    """

    positive_iou: float = 0.5
    samples_per_image: int = 512
    positive_fraction: float = 0.25
    smooth_l1_beta: float = 1 / 9
    nms_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_in("(0, 1]", positive_iou=self.positive_iou)
        check_at_least(1, samples_per_image=self.samples_per_image)
        check_in("[0, 1]", positive_fraction=self.positive_fraction, nms_threshold=self.nms_threshold)
        check_at_least(0, smooth_l1_beta=self.smooth_l1_beta)

"""What both stages of a detector are told: which candidates stand for objects, and which of alike boxes stay."""

from __future__ import annotations

from dataclasses import dataclass

from visionlab.checks import check_at_least, check_in
from visionlab.models.box_losses import BoxLoss
from visionlab.settings import Settings


@dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """How a stage compares its candidates, anchors or proposals, with the objects, and drops boxes that are alike.

    Args:
        positive_iou: a candidate that overlaps an object at least so much is positive.
        samples_per_image: candidates that the losses look at.
        positive_fraction: largest share of positives among them.
        box_loss: of the positives' boxes: ``smooth_l1`` or ``l1`` of their offsets, or one minus the generalized or
            the distance IoU of the boxes with the objects.
        smooth_l1_beta: where ``smooth_l1`` turns from square to linear; 0 is plain L1.
        nms_threshold: of two boxes of one class, or of one level for proposals, with a higher IoU, the lower score
            goes.
    """

    positive_iou: float = 0.5
    samples_per_image: int = 512
    positive_fraction: float = 0.25
    box_loss: BoxLoss = "smooth_l1"
    smooth_l1_beta: float = 1 / 9
    nms_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_in("(0, 1]", positive_iou=self.positive_iou)
        check_at_least(1, samples_per_image=self.samples_per_image)
        check_in("[0, 1]", positive_fraction=self.positive_fraction, nms_threshold=self.nms_threshold)
        check_at_least(0, smooth_l1_beta=self.smooth_l1_beta)
        if self.box_loss != "smooth_l1":
            self._refuse_without_effect("smooth_l1_beta", f"with box_loss {self.box_loss}")

    def _refuse_without_effect(self, setting: str, why: str) -> None:
        """Refuse a setting that is not at its default."""
        if getattr(self, setting) != type(self).__dataclass_fields__[setting].default:
            raise ValueError(f"{setting}: no effect {why}")

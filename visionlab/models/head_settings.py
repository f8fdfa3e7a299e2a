"""What may be said of every second stage."""

from __future__ import annotations

from dataclasses import dataclass

from visionlab.checks import check_above, check_at_least, check_in
from visionlab.models.stage import StageSettings
from visionlab.models.suppression import Nms


@dataclass(frozen=True, kw_only=True)
class HeadSettings(StageSettings):
    """How a second stage compares its RoIs with the objects, and which of them are detections.

    Args:
        class_agnostic: all classes share one box, instead of one of their own for each.
        box_weights: factors of the box offsets ``dx, dy, dw, dh``.
        ohem: the losses look at those ``samples_per_image`` of all proposals whose losses are the largest, whatever
            share of them is positive, instead of at a random choice.
        ohem_nms_threshold: of two proposals with a higher IoU, only the one with the larger loss is looked at.
        score_threshold: detections must score more.
        nms: what becomes of a box that overlaps a better one of its class: ``hard`` leaves it out, ``soft_linear`` and
            ``soft_gaussian`` lower its score (Bodla et al. 2017, arXiv:1704.04503), the latter without a threshold.
        nms_sigma: width of ``soft_gaussian``; the larger, the less scores are lowered.
        max_detections: best detections of an image that stay.
    """

    class_agnostic: bool = False
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    ohem: bool = False
    ohem_nms_threshold: float = 0.7
    score_threshold: float = 0.05
    nms: Nms = "hard"
    nms_sigma: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(0, box_weights=self.box_weights)
        check_in("[0, 1]", ohem_nms_threshold=self.ohem_nms_threshold)
        check_in("[0, 1)", score_threshold=self.score_threshold)
        check_above(0, nms_sigma=self.nms_sigma)
        check_at_least(1, max_detections=self.max_detections)
        if self.ohem:
            self._refuse_without_effect("positive_fraction", "with ohem, which takes the hardest of all")
        else:
            self._refuse_without_effect("ohem_nms_threshold", "without ohem")
        if self.nms == "soft_gaussian":
            self._refuse_without_effect("nms_threshold", "with nms soft_gaussian, which has no threshold")
        else:
            self._refuse_without_effect("nms_sigma", f"with nms {self.nms}")

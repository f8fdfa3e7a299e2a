"""Which images and annotations of a dataset are used: settings that its sources have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visionlab.checks import check_at_least, check_in
from visionlab.data.coco_json import check_classes
from visionlab.data.looks import NEAR_COPIES
from visionlab.data.problems import Policy
from visionlab.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Selection(Settings):
    """The choice among images.

    Args:
        limit: use this many images, a fixed choice that grows with the limit; all by default.
        policy: what to do with faulty files and annotations: repair what can be repaired and leave out the rest | skip,
            that is leave out whatever is faulty | fail with a message that names every fault.
    """

    limit: int | None = None
    policy: Policy = "repair"

    def __post_init__(self) -> None:
        check_at_least(1, limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class LabelSelection(Settings):
    """The choice among classes and labelled images.

    Args:
        classes: the category names to use, in the order of labels; by default all of the dataset, in the order of their
            ids.
        keep_empty: keep images without a box.
    """

    classes: list[str] | None = None
    keep_empty: bool = True

    def __post_init__(self) -> None:
        if self.classes is not None:
            check_classes(self.classes)


@dataclass(frozen=True, kw_only=True)
class ClassSelection(LabelSelection):
    """The choice among the classes of a whole dataset, and labelled images.

    Args:
        keep_unused: keep classes that no box uses.
    """

    keep_unused: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_unused and self.classes is not None:
            raise ValueError("keep_unused: no effect beside classes")


@dataclass(frozen=True, kw_only=True)
class Validation(Settings):
    """Which labelled images are evaluated on.

    Args:
        val_fraction: evaluate on this share of the training images, between 0 and 1, and train on the others.
        split_seed: another seed, another split.
        near_copies: copies of one photo are not divided: those that Roboflow made, equal files, and images that look
            the same. These may differ in this share of a hash of 256 comparisons, from 0 to 1; 0 or null leaves looks
            out.
        evaluate_on: the part of the dataset that is evaluated on, val, or test once training is over.
    """

    val_fraction: float | None = None
    split_seed: int = 0
    near_copies: float | None = NEAR_COPIES
    evaluate_on: Literal["val", "test"] = "val"

    def __post_init__(self) -> None:
        check_in("(0, 1)", val_fraction=self.val_fraction)
        check_in("[0, 1]", near_copies=self.near_copies)
        for name, default in (("split_seed", 0), ("near_copies", NEAR_COPIES)):
            if self.val_fraction is None and getattr(self, name) != default:
                raise ValueError(f"{name}: no effect without val_fraction")
        if self.val_fraction is not None and self.evaluate_on == "test":
            raise ValueError("val_fraction: expected either val_fraction or evaluate_on: test, got both")

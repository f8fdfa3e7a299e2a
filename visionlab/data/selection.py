"""Which images and annotations of a dataset are used: settings that its sources have in common."""

from __future__ import annotations

from dataclasses import dataclass

from visionlab.checks import check_at_least
from visionlab.data.coco_json import check_classes
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

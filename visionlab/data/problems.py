"""What is wrong with a data set: every fault has a kind, a file and, where there is one, an annotation id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# repair: mend what can be mended and leave out the rest; skip: leave out whatever has a fault; fail: stop, naming all.
Policy = Literal["repair", "skip", "fail"]

# What each kind of fault is, and what is done about it under ``repair``; where nothing is said, it is left out.
KINDS = {
    "missing-file": "an image file that does not exist",
    "unreadable-file": "an image file that cannot be read",
    "damaged-file": "an image file that can be decoded only in part: that part is used",
    "bad-image-entry": "an entry of images without a whole number as id or without a file name",
    "duplicate-image-id": "an id listed twice: counted once if the file is the same, else both images are left out",
    "duplicate-image": "a file listed under two ids: the boxes of both are joined",
    "image-size": "a json size unlike the file's: if EXIF swaps it and all boxes fit upright, the file's size is used",
    "duplicate-annotation-id": "an annotation id that is missing, no whole number, or taken: numbered anew",
    "unknown-image": "an annotation of an image that is not listed",
    "unknown-category": "an annotation of a category that is not listed",
    "invalid-box": "a box that is not four finite numbers",
    "negative-box": "a box of negative width or height: its corners are put in order",
    "zero-box": "a box less than a hundredth of a pixel wide or high",
    "outside-box": "a box that leaves its image by more than half a pixel: clipped if anything of it is inside",
    "zero-area": "an annotation whose area is no positive number though its box has one: width x height is used",
    "corner-boxes": "boxes written as x1, y1, x2, y2, not COCO's x, y, width, height: an error under every policy",
}


@dataclass(frozen=True)
class Problem:
    """One fault of a data set.

    Args:
        kind: a key of ``KINDS``.
        file: the image, or the json where no image is concerned.
        detail: what is there and, where it helps, what was expected.
        image_id: the image's id in the json.
        annotation_id: the annotation's id in the json.
        action: what was done about it, such as "clipped" or "left out"; empty if nothing was.
        place: where the annotation stands if it is not in a json, such as "labels/a.txt, line 3".
    """

    kind: str
    file: str
    detail: str
    image_id: int | None = None
    annotation_id: int | str | None = None
    action: str = ""
    place: str = ""

    def __str__(self) -> str:
        place = self.place or ("" if self.annotation_id is None else f"annotation {self.annotation_id}")
        where = f"{self.file}, {place}" if place else self.file
        return f"{where}: {self.kind}: {self.detail}" + (f" ({self.action})" if self.action else "")


def summarize(problems: Sequence[Problem]) -> str:
    """Return one line that counts problems by kind and action, the most frequent first; empty if there are none."""
    counts = Counter((problem.kind, problem.action) for problem in problems)
    return ", ".join(f"{n} {kind}" + (f" ({action})" if action else "") for (kind, action), n in counts.most_common())


def fail_on(problems: Sequence[Problem], source: str) -> None:
    """Raise a ValueError of one line that names the first 20 problems and counts all; return if there are none.

    Args:
        source: the json or the folder that the problems belong to.
    """
    if problems:
        shown = "; ".join(str(problem) for problem in problems[:20])
        rest = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{source}: {len(problems)} problems ({summarize(problems)}): {shown}{rest}")

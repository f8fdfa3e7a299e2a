"""What is wrong with a data set: every fault has a kind, a file and, where there is one, an annotation id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# repair: mend what can be mended and leave out the rest; skip: leave out whatever has a fault; fail: stop, naming all.
Policy = Literal["repair", "skip", "fail"]

KINDS = {
    "missing-file": "an image file that does not exist",
    "unreadable-file": "an image file that cannot be read",
    "damaged-file": "an image file that can be decoded only in part",
    "bad-image-entry": "an entry of images without a whole-number id or a file name",
    "duplicate-image-id": "two different images under one id",
    "duplicate-image": "one file listed as two images",
    "image-size": "an image whose size in the json is not that of its file",
    "duplicate-annotation-id": "an annotation whose id is missing, no whole number or taken",
    "unknown-image": "an annotation of an image that is not listed",
    "unknown-category": "an annotation of a category that is not listed",
    "invalid-box": "a box that is not four finite numbers",
    "negative-box": "a box of negative width or height",
    "zero-box": "a box without area",
    "outside-box": "a box that leaves its image",
    "zero-area": "an annotation whose area is not a positive number though its box is",
    "corner-boxes": "boxes written as x1, y1, x2, y2 where COCO has x, y, width, height",
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
    """

    kind: str
    file: str
    detail: str
    image_id: int | None = None
    annotation_id: int | str | None = None
    action: str = ""

    def __str__(self) -> str:
        where = self.file if self.annotation_id is None else f"{self.file}, annotation {self.annotation_id}"
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

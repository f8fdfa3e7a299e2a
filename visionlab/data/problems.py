"""What is wrong with a data set: every fault has a kind, a file and, where there is one, an annotation id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from visionlab.text import printable, shorten

# repair: mend what can be mended and leave out the rest; skip: leave out whatever has a fault; fail: stop, naming all.
Policy = Literal["repair", "skip", "fail"]

# What each kind of fault is, and what is done about it under ``repair``; where nothing is said, it is left out.
KINDS = {
    "missing-file": "an image file that does not exist",
    "file-name": "a file name that matches no file, though one file alone can be meant: that file is used",
    "ambiguous-file": "a file name that matches no file by itself, and several loosely",
    "outside-file": "a file name, or a link, that leads out of the folder of images: never read",
    "unreadable-file": "an image file that cannot be read",
    "damaged-file": "an image file that can be decoded only in part: that part is used",
    "bad-image-entry": "an entry of images without a whole number as id or without a file name",
    "duplicate-image-id": "an id listed twice: counted once if the file is the same, else both images are left out",
    "duplicate-image": "a file listed under two ids: the boxes of both are joined",
    "image-size": "a json size unlike the file's: if EXIF swaps it and all boxes fit upright, the file's size is used",
    "duplicate-category": "a category listed twice with the same name and id: counted once",
    "similar-classes": "class names that differ by letters' case or space only: all are kept",
    "odd-value": "a number written as text, or the like, that can be read in one way: read so",
    "odd-box": "a box that is text, in another list, an object or only an outline: read in the one way possible",
    "center-box": "a box given by its center, as all of its json are: converted",
    "relative-box": "a box in 0..1 of its image's size: converted if the boxes of its json fit in one form only",
    "odd-area": "areas that do not fit their boxes, being all the same, too large or relative: width x height is used",
    "invalid-crowd": "an iscrowd that is neither 0 nor 1",
    "duplicate-annotation-id": "an annotation id that is missing, no whole number, or taken: numbered anew",
    "unknown-image": "an annotation of an image that is not listed",
    "unknown-category": "an annotation of a category that is not listed",
    "invalid-box": "a box that is not four finite numbers",
    "negative-box": "a box of negative width or height: its corners are put in order",
    "zero-box": "a box less than a hundredth of a pixel wide or high",
    "outside-box": "a box that leaves its image by more than half a pixel: clipped if anything of it is inside",
    "zero-area": "an annotation whose area is no positive number though its box has one: width x height is used",
    "bad-row": "a row of a label file that is no class number with coordinates relative to the image",
    "bad-xml": "an xml file that is no VOC annotation of an image: its image is left out",
    "bad-object": "an object of an xml file without a name or without the four sides of its box",
    "leak": "an image that is a copy of one in another part of the dataset: to find its objects shows little",
    "annotations-lost": "more than half of the annotations would be left out: an error under every policy",
    "corner-boxes": "boxes written as x1, y1, x2, y2, not COCO's x, y, width, height: an error under every policy",
}

# What stops a run under every policy.
FATAL = ("annotations-lost", "corner-boxes")


@dataclass(frozen=True)
class Problem:
    """One fault of a data set, or many of the same kind in one json.

    Args:
        kind: a key of ``KINDS``.
        file: the image, or the json where no image is concerned.
        detail: what is there and, where it helps, what was expected.
        image_id: the image's id in the json.
        annotation_id: the annotation's id in the json.
        action: what was done about it, such as "clipped" or "left out"; empty if nothing was.
        place: where the annotation stands if it is not in a json, such as "labels/a.txt, line 3".
        count: how many entries of the json have this fault; the detail is then that of the first.
    """

    kind: str
    file: str
    detail: str
    image_id: int | None = None
    annotation_id: int | str | None = None
    action: str = ""
    place: str = ""
    count: int = 1

    def __str__(self) -> str:
        place = self.place or ("" if self.annotation_id is None else f"annotation {self.annotation_id}")
        where = f"{self.file}, {place}" if place else self.file
        text = f"{where}: {self.kind}: {self.detail}" + (f" ({self.action})" if self.action else "")
        return printable(shorten(text, 1000))


def count_kinds(problems: Sequence[Problem]) -> Counter[str]:
    """Return how many entries have a fault of each kind."""
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += problem.count
    return counts


def summarize(problems: Sequence[Problem]) -> str:
    """Return one line that counts problems by kind and action, the most frequent first; empty if there are none."""
    counts: Counter[tuple[str, str]] = Counter()
    for problem in problems:
        counts[problem.kind, problem.action] += problem.count
    named = ", ".join(f"{n} {kind}" + (f" ({action})" if action else "") for (kind, action), n in counts.most_common(9))
    return printable(named) + (f" and {len(counts) - 9} other kinds" if len(counts) > 9 else "")


def digest(problems: Sequence[Problem]) -> list[str]:
    """Return one line for each kind of problem: the only one, or how many there are and the first."""
    lines = []
    for kind, count in count_kinds(problems).most_common():
        same = [problem for problem in problems if problem.kind == kind]
        lines.append(str(same[0]) if len(same) == 1 else f"{count} x {kind}, the first: {same[0]}")
    return lines


def fail_on(problems: Sequence[Problem], source: str) -> None:
    """Raise a ValueError of one line that names the first 20 problems and counts all; return if there are none.

    Args:
        source: the json or the folder that the problems belong to.
    """
    if problems:
        shown = "; ".join(str(problem) for problem in problems[:20])
        rest = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        total = count_kinds(problems).total()
        raise ValueError(f"{source}: {total} problems ({summarize(problems)}): {shown}{rest}")

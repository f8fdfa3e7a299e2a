"""Test-time augmentation: which views of an image a detector looks at."""

from __future__ import annotations

from visionlab.checks import check_at_least
from visionlab.choices import OneOf


class SeveralViews:
    """Which views of each image a detector looks at: its mirror image too, or several sizes of it, or both.

    Args:
        flip: also look at the mirror image of each size.
        sizes: short sides in pixels; the most that the long side may have grows with them. By default the one of
            evaluation.
    """

    def __init__(self, *, flip: bool = False, sizes: list[int] | None = None) -> None:
        check_at_least(1, sizes=sizes)
        if sizes and len(set(sizes)) < len(sizes):
            raise ValueError(f"sizes: expected each once, got {sizes}")
        self.flip, self.sizes = flip, sizes


AUGMENT = OneOf({"views": SeveralViews})

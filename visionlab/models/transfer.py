"""What became of every tensor of a file and of a model when one was loaded into the other."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TransferReport:
    """What became of every tensor of a file and of a backbone when one was loaded into the other.

    Args:
        source: the file, or ``timm``.
        prefix: what stood before timm's names in the file and was taken off.
        matched: names loaded.
        resized: those of them that are position embeddings, interpolated to the backbone's grid.
        missing: names of the backbone that the file does not have; they keep their values.
        new: those that timm's own model does not have either, such as the offsets of deformable convolutions; they keep
            their values too, and count for nothing below where the file does not have them.
        mismatched: names both have, in different shapes, with both shapes; they keep their values.
        expected: names the file has and the backbone does without: classifier, head, BatchNorm statistics where the
            backbone has GroupNorm, batch counters.
        unexpected: all other names of the file, left aside too.
        matched_elements: how many numbers the matched tensors hold.
        total_elements: how many numbers all tensors of the backbone hold.
        notes: what else happened, in words.
    """

    source: str
    prefix: str = ""
    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    matched_elements: int = 0
    total_elements: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many tensors the backbone has, batch counters aside."""
        return len(self.matched) + len(self.missing) + len(self.mismatched)

    @property
    def fraction(self) -> float:
        """The share of the backbone that was loaded, in [0, 1]: of its tensors or of its elements, the smaller one."""
        return min(len(self.matched) / self.total, self.matched_elements / self.total_elements)

    def __str__(self) -> str:
        parts = [
            f"matched {len(self.matched)} of {self.total} tensors ({len(self.matched) / self.total:.1%}) and "
            f"{self.matched_elements:,} of {self.total_elements:,} elements "
            f"({self.matched_elements / self.total_elements:.1%})",
            f"missing {some(self.missing)}",
            f"of another shape {some(self.mismatched)}",
            f"unexpected {some(self.unexpected)}",
            f"not needed {some(self.expected)}",
            *self.notes,
        ]
        return f"{self.source}: " + "; ".join(parts)


def some(names: list[str]) -> str:
    """Return how many names there are, and the first three."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} ({shown})" if names else "0"

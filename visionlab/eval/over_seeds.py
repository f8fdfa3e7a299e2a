"""The results of an arm of a study over its seeds.

Runs that diverged have no result. They enter no mean, but every table counts them, and an arm that has one is never the
best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Result = dict[str, Any]
"""What one run reached, as JSON; of a run that diverged ``diverged`` alone, with the reason."""

Arm = TypeVar("Arm")


def finished(cells: Sequence[Result | None]) -> list[Result]:
    """Return the cells that are there and did not diverge."""
    return [cell for cell in cells if cell is not None and "diverged" not in cell]


def both_finished(first: Sequence[Result | None], second: Sequence[Result | None]) -> list[tuple[Result, Result]]:
    """Return the cells of two arms, seed by seed, where both are there and neither diverged."""
    pairs = (finished(pair) for pair in zip(first, second, strict=True))
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


def count(cells: Sequence[Result | None]) -> str:
    """Return how many runs finished: ``5``, or ``3 of 5, 2 diverged``."""
    done, diverged = len(finished(cells)), sum(cell is not None and "diverged" in cell for cell in cells)
    text = str(done) if done == len(cells) else f"{done} of {len(cells)}"
    return text + (f", {diverged} diverged" if diverged else "")


def best_arm(arms: Mapping[Arm, Sequence[Result | None]], measure: str) -> Arm:
    """Return the arm with the highest mean of a measure, the first of equals, among those whose runs all finished.

    Args:
        arms: arm -> its cells.
        measure: a key of the cells.

    Raises:
        ValueError: no arm has all its runs.
    """
    means = {
        arm: float(np.mean([cell[measure] for cell in finished(cells)]))
        for arm, cells in arms.items()
        if cells and len(finished(cells)) == len(cells)
    }
    if not means:
        counts = "; ".join(f"{arm}: {count(cells)}" for arm, cells in arms.items())
        raise ValueError(f"expected an arm whose runs all finished, got {counts}")
    return max(means, key=lambda arm: means[arm])

"""Arms of a study, each at the learning rate that is best for it: chosen on seeds that are not reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visionlab.eval.over_seeds import Result, best_arm
from visionlab.studies.cells import Cell, CellStore, Job


@dataclass(frozen=True)
class Tuned:
    """The cells of a study whose arms were tuned.

    Args:
        tuning: arm -> learning rate -> its results with the tuning seeds.
        rates: arm -> the learning rate that was chosen.
        reported: arm -> its results at that rate with the seeds that are reported, in their order.
    """

    tuning: dict[str, dict[float, list[Result]]]
    rates: dict[str, float]
    reported: dict[str, list[Result]]

    def to_json(self) -> dict[str, dict[str, list[float | None]]]:
        """Return AP of every arm at every rate with each tuning seed, None where the run diverged."""
        return {
            arm: {f"{rate:g}": [cell.get("AP") for cell in cells] for rate, cells in row.items()}
            for arm, row in self.tuning.items()
        }


def rate_cell(arm: str, rate: float, seed: int) -> Cell:
    """Return the cell of an arm at a learning rate."""
    return Cell(f"{arm}-lr{rate:g}", seed)


def tune(
    cells: CellStore,
    job: Callable[[str, float, int], Job],
    arms: Sequence[str],
    *,
    rates: Sequence[float],
    tuning_seeds: Sequence[int],
    seeds: Sequence[int],
) -> Tuned:
    """Do every arm with every rate and tuning seed, and then with the seeds at the rate that is best for it.

    The best rate has the highest mean AP; one at which a run diverged is not chosen.

    Args:
        cells: where results are kept.
        job: says how an arm is done at a learning rate with a seed; its cell is ``rate_cell``'s.
        arms: by name.
        rates: the grid, the same for all arms.
        tuning_seeds: choose the rate of each arm.
        seeds: are reported; none of them may be a tuning seed.

    Raises:
        ValueError: a seed both tunes and is reported, or an arm diverges at every rate.
    """
    if both := sorted(set(tuning_seeds) & set(seeds)):
        raise ValueError(f"expected tuning seeds that are not reported, got {both}")

    def fill(pairs: Sequence[tuple[str, float]], of: Sequence[int]) -> dict[tuple[str, float], list[Result]]:
        jobs = {(arm, rate): [job(arm, rate, seed) for seed in of] for arm, rate in pairs}
        results = cells.fill([each for row in jobs.values() for each in row])
        return {pair: [results[each.cell] for each in row] for pair, row in jobs.items()}

    tried = fill([(arm, rate) for arm in arms for rate in rates], tuning_seeds)
    tuning = {arm: {rate: tried[arm, rate] for rate in rates} for arm in arms}
    best = {arm: _best_rate(arm, tuning[arm]) for arm in arms}
    reported = {arm: row for (arm, _), row in fill(list(best.items()), seeds).items()}
    return Tuned(tuning, best, reported)


def _best_rate(arm: str, tuning: dict[float, list[Result]]) -> float:
    try:
        return best_arm(tuning, "AP")
    except ValueError as error:
        raise ValueError(f"rates of the arm {arm}: {error}; try smaller ones") from error

"""The results of a study, one file for each arm and seed, which several processes or machines fill together.

One rule for runs that diverge: their cell says so, and nothing else. It is done, it is counted and shown, and it enters
no mean (``visionlab.eval.over_seeds``).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from visionlab import distributed
from visionlab.eval.over_seeds import Result
from visionlab.files import write_text
from visionlab.studies.ownership import Ownership


@dataclass(frozen=True)
class Cell:
    """One entry of a study's table.

    Args:
        arm: what is compared, for example a method.
        seed: of its run.
    """

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-seed{self.seed}"


@dataclass(frozen=True)
class Job:
    """How a cell is done.

    Args:
        cell: whose result it is.
        work: returns the result; FloatingPointError says that the run diverged.
        needs: what must be done before, if this cell is not done yet. If one of them diverged, so has this one.
        scratch: a folder that is removed once the result is written.
    """

    cell: Cell
    work: Callable[[], Result]
    needs: tuple[Job, ...] = ()
    scratch: Path | None = None


class CellStore:
    """The cells in a folder: each is done once, by whichever process of whichever machine comes first.

    ``ARM-seedN.json`` is a cell that is done, ``ARM-seedN.owner-1`` says who is doing it, and ``protocol.json`` holds
    the settings that all cells of the folder share. Everything is written all or nothing. A cell whose owner died is
    taken over, and a damaged one is named and done again.

    Args:
        folder: made if it is not there.
        protocol: the settings by name; names may be added later, but the value of a name may not change.
        poll: seconds between two looks at the cells that others are doing.
        ownership: who does what in this folder; by default with the usual heartbeat.

    Raises:
        ValueError: the folder holds cells of another protocol.
    """

    def __init__(
        self, folder: Path, protocol: Mapping[str, Any], *, poll: float = 2, ownership: Ownership | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.poll = folder, poll
        self.ownership = ownership or Ownership(folder)
        self._told: set[str] = set()
        self._console = Console()
        self._check_protocol(json.loads(json.dumps(protocol)))

    def read(self, cell: Cell) -> Result | None:
        """Return the result of a cell; None where it is not done, or its file is damaged, which is printed once."""
        path = self._path(cell)
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(result, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._say(f"{path}: damaged ({error}), it counts as missing", once=True)
            return None
        if "failed" in result:  # written by earlier versions
            result["diverged"] = result.pop("failed")
        return result

    def fill(self, jobs: Sequence[Job]) -> dict[Cell, Result]:
        """Do every cell that is not done, wait for those that other processes are doing, and return all results."""
        if distributed.world_size() > 1:
            raise ValueError(
                f"a study: expected one process, got {distributed.world_size()}; start the same command several times "
                "to share its cells"
            )
        progress = _Progress(len(jobs))
        while True:
            results = {job.cell: self.read(job.cell) for job in jobs}
            missing = [job for job in jobs if results[job.cell] is None]
            if told := progress.look(len(missing)):
                self._console.print(told, markup=False, highlight=False)
            if not missing:
                return {cell: result for cell, result in results.items() if result is not None}
            needed = [need for job in missing for need in job.needs if self.read(need.cell) is None]
            waiting = {job.cell: job for job in (*needed, *missing)}.values()
            if not any(self._do(job) for job in waiting):
                owners = {job.cell: self.ownership.owner_of(str(job.cell)) for job in waiting}
                names = ", ".join(f"{cell} ({owner})" for cell, owner in owners.items() if owner)
                self._say(f"waiting for cells that others are doing: {names}", once=True)
                time.sleep(self.poll)

    def _do(self, job: Job) -> bool:
        """Do a cell if it is free and what it needs is there, and return whether it is done."""
        needs = {need.cell: result for need in job.needs if (result := self.read(need.cell)) is not None}
        if len(needs) < len(job.needs):
            return False
        with self.ownership.take(str(job.cell)) as owner:
            if owner is None:
                return False
            if self.read(job.cell) is not None:  # done since we looked
                return True
            if owner.previous:
                self._say(f"{job.cell}: taken over, its owner is dead ({owner.previous})")
            self._console.print(str(job.cell), style="bold", markup=False, highlight=False)
            diverged = [f"{cell}: {need['diverged']}" for cell, need in needs.items() if "diverged" in need]
            result = {"diverged": diverged[0]} if diverged else _result(job.work)
            if "diverged" in result:
                self._say(f"{job.cell}: {result['diverged']}")
            if not owner.holds():
                self._say(f"{job.cell}: another process took it over, this result does not count")
                return False
            content = {"arm": job.cell.arm, "seed": job.cell.seed, **result}
            write_text(self._path(job.cell), json.dumps(content, indent=1))
            if job.scratch is not None:
                shutil.rmtree(job.scratch, ignore_errors=True)
            return True

    def _check_protocol(self, own: dict[str, Any]) -> None:
        """Compare the protocol with the folder's, and add to that what is new."""
        path = self.folder / "protocol.json"
        while True:
            known = self._protocol(path)
            changed = [place for name in known if name in own for place in _changed(known[name], own[name], name)]
            if changed:
                raise ValueError(
                    f"{self.folder}: expected the settings of the results in it, got another {', '.join(changed)}; "
                    "restore the settings or choose another folder"
                )
            if known | own == known:
                return
            if digests := [name for name in known if _is_digest(known[name], own.get(name))]:
                self._say(f"{path}: of an earlier version, whose {', '.join(digests)} cannot be compared", once=True)
            with self.ownership.take("protocol") as owner:
                if owner is not None and self._protocol(path) == known:
                    write_text(path, json.dumps(known | own, indent=1))
                    return
            time.sleep(0.05)

    def _protocol(self, path: Path) -> dict[str, Any]:
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(
                f"{path}: damaged ({error}); choose another folder, or remove the file if the results beside it are "
                "of the same settings"
            ) from error
        known |= {
            f"methods.{name}": value for name, value in known.pop("methods", {}).items()
        }  # written by earlier versions
        return known

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell}.json"

    def _say(self, text: str, once: bool = False) -> None:
        if not once or text not in self._told:
            self._told.add(text)
            self._console.print(text, style="yellow", markup=False, soft_wrap=True, highlight=False)


class _Progress:
    """Says how many cells are done, by whomever, and when at this pace the others will be."""

    def __init__(self, cells: int) -> None:
        self.cells, self.begin = cells, time.monotonic()
        self.at_first: int | None = None
        self.before: int | None = None

    def look(self, missing: int) -> str:
        """Return a line where cells have been done since the last look; else nothing."""
        self.at_first = missing if self.at_first is None else self.at_first
        before, self.before = self.before, missing
        if before is None or missing >= before:
            return ""
        left = (time.monotonic() - self.begin) / max(self.at_first - missing, 1) * missing
        return f"{self.cells - missing} of {self.cells} cells done, about {timedelta(seconds=round(left))} left"


def _result(work: Callable[[], Result]) -> Result:
    try:
        result = work()
    except FloatingPointError as error:
        return {"diverged": str(error)}
    wrong = [f"{name} is {value}" for name, value in _numbers(result) if not math.isfinite(value)]
    return {"diverged": wrong[0]} if wrong else result


def _numbers(result: Any, name: str = "") -> Iterable[tuple[str, float]]:
    """Yield every number of a result with its place."""
    if isinstance(result, float):
        yield name, result
    items = result.items() if isinstance(result, dict) else enumerate(result) if isinstance(result, list) else ()
    for key, value in items:
        yield from _numbers(value, f"{name}.{key}" if name else str(key))


def _changed(known: Any, own: Any, name: str) -> list[str]:
    """Return the places below a name at which two settings differ."""
    if not isinstance(known, dict) or not isinstance(own, dict):
        return [] if known == own or _is_digest(known, own) else [name]
    places = [_changed(known.get(key), own.get(key), f"{name}.{key}") for key in known | own]
    return [place for found in places for place in found]


def _is_digest(known: Any, own: Any) -> bool:
    """Return whether settings were written as a hash, as earlier versions did."""
    return isinstance(known, str) and isinstance(own, dict)

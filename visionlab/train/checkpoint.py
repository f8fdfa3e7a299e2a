"""Checkpoints: everything a run needs in order to go on as if it had never stopped."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from visionlab import distributed
from visionlab.checks import check_at_least


class Stateful(Protocol):
    """Anything whose state can be stored and taken over again."""

    def state_dict(self) -> Any:
        """Return the state as tensors, numbers, strings, lists and dicts."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over what ``state_dict`` returned."""


class Checkpoints:
    """The checkpoints of one run folder.

    A file holds the number of updates done and the state of every part of the run: task, optimizer, scaler, weight
    average, best metric, log. The learning rate, the position of the sampler and the state of all random generators
    are not stored beside the step because they are functions of it: the schedule and the batches take a step, and the
    loop seeds the generators of torch, numpy and Python anew for each micro-batch from the run's seed, the step and
    the rank.

    A file is written under another name, flushed to the disk and then renamed, so a crash leaves the one before.

    Args:
        folder: where the files ``step_00001000.pt`` lie; shared by nobody but this run.
        fingerprint: a text that changes with every setting that changes the run.
        every: updates between two checkpoints.
        keep: how many of the newest files stay.
    """

    def __init__(self, folder: Path, fingerprint: str, *, every: int = 1000, keep: int = 2) -> None:
        check_at_least(1, every=every, keep=keep)
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self.every = every
        self.keep = keep

    def save(self, step: int, parts: Mapping[str, Stateful]) -> None:
        """Write the state after ``step`` updates; every process calls this, the main one writes."""
        states = {name: part.state_dict() for name, part in parts.items()}
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            content = {"format": 1, "fingerprint": self.fingerprint, "step": step, "states": states}
            _write(content, self.folder / f"step_{step:08d}.pt")
            for path in self._files()[self.keep :]:
                path.unlink()
        distributed.barrier()  # no process may end, and with it the run, before the file is whole

    def restore(self, parts: Mapping[str, Stateful]) -> tuple[int, list[str]]:
        """Bring every part to where the newest readable checkpoint left it.

        Only the main process reads files, the others are told, so machines need not share a disk.

        Args:
            parts: the same names as given to ``save``.

        Returns:
            The number of updates done, 0 without a checkpoint, and a sentence for each damaged file that was passed
            over (and renamed to ``.damaged``).

        Raises:
            ValueError: the checkpoint belongs to another config, or no checkpoint is readable.
        """
        content, notes = distributed.broadcast(self._newest() if distributed.is_main() else None)
        if content is None:
            return 0, notes
        for name, part in parts.items():
            part.load_state_dict(content["states"][name])
        return content["step"], notes

    def _newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        files = self._files()
        notes: list[str] = []
        for path in files:
            try:
                content = _read(path)
            except Exception as error:  # a damaged zip or pickle can raise nearly anything
                notes.append(f"{path} is damaged ({_first_line(error)}); falling back to the checkpoint before it")
                continue
            self._check(path, content)
            for damaged in files[: files.index(path)]:
                damaged.rename(damaged.with_suffix(".damaged"))
            return content, notes
        if files:
            raise ValueError(
                f"none of the {len(files)} checkpoints in {self.folder} can be read; remove them to start from step 0"
            )
        return None, notes

    def _check(self, path: Path, content: dict[str, Any]) -> None:
        if content["format"] != 1:
            raise ValueError(f"{path} has checkpoint format {content['format']}; this visionlab reads format 1")
        if content["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{path} was written with other settings; give the run another folder, restore the settings, or "
                f"remove {self.folder} to start from step 0"
            )

    def _files(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self.folder.glob("step_*.pt"), reverse=True)


class Best:
    """The best evaluation so far.

    Args:
        metric: the name of the number that counts, higher is better.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.value = -math.inf
        self.step = 0

    def improves(self, step: int, metrics: dict[str, float]) -> bool:
        """Take note of an evaluation and return whether it is the best so far."""
        if self.metric not in metrics:
            raise ValueError(f"the evaluation gives {sorted(metrics)}, but {self.metric} decides which is best")
        better = metrics[self.metric] > self.value
        if better:
            self.value, self.step = metrics[self.metric], step
        return better

    def state_dict(self) -> dict[str, float]:
        """Return value and step."""
        return {"value": self.value, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.value, self.step = state["value"], state["step"]


def _write(content: dict[str, Any], path: Path) -> None:
    """Write a file so that at every moment either the whole of it exists or nothing."""
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a power cut
    finally:
        os.close(folder)


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if entry := archive.testzip():  # torch.load does not look at the checksums
            raise ValueError(f"wrong checksum of {entry}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

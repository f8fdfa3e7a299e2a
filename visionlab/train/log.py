"""What a run records: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from torch import Tensor

from visionlab import distributed
from visionlab.checks import check_at_least
from visionlab.files import write_text
from visionlab.train.progress import ProgressDisplay


class Log:
    """The record of a run; every process has one, the main process's writes.

    ``metrics.jsonl`` gets one JSON object per line: training rows, evaluation rows (keys ``eval/...``) and warnings,
    each with its ``step``. Losses in a row are means over the steps since the last row and over all processes.

    Args:
        folder: the run folder.
        steps: updates in the run.
        every: updates between two rows.
        tensorboard: also write TensorBoard events to ``folder/tensorboard``; needs the package tensorboard.
    """

    def __init__(
        self, folder: Path, steps: int, console: Console | None = None, *, every: int = 10, tensorboard: bool = False
    ) -> None:
        check_at_least(1, every=every)
        self.path = Path(folder) / "metrics.jsonl"
        self.steps = steps
        self.every = every
        self._writes = distributed.is_main()
        self._display = ProgressDisplay(steps, console or Console()) if self._writes else None
        if tensorboard and find_spec("tensorboard") is None:
            raise ValueError("tensorboard: expected the package of that name, got none: pip install tensorboard")
        self._tensorboard = tensorboard
        self._events: Any = None
        self._step = 0
        self._sums: Tensor | None = None
        self._count = 0
        self._said: list[str] = []
        self._seconds = 0.0  # of this run in earlier sessions
        self._start = perf_counter()
        self._clear_speed()

    @contextmanager
    def opened(self, step: int) -> Iterator[Log]:
        """Record from ``step`` on: drop what an interrupted session wrote after it, and start the clock."""
        self._step = step
        self._start = perf_counter()
        self._clear_speed()
        if not self._display:
            yield self
            return
        _truncate(self.path, step)
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only where it is asked for

            self._events = SummaryWriter(self.path.parent / "tensorboard", purge_step=step + 1)
        with self._display.shown(step):
            if step:
                self._display.line(f"going on after step {step} of {self.steps}")
            try:
                yield self
            finally:
                if self._events:
                    self._events.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the ``with`` block as waiting for data."""
        start = perf_counter()
        yield
        self._waited += perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the ``with`` block out of the speed of training."""
        start = perf_counter()
        yield
        self._mark += perf_counter() - start

    def due(self, step: int) -> bool:
        """Return whether a row is written after ``step``."""
        return step % self.every == 0 or step == self.steps

    def add(self, step: int, values: Tensor, images: int) -> None:
        """Count a step.

        Args:
            step: updates done.
            values: ``(losses + 1,)``, the losses and the norm of the gradient; nothing is read from the device here.
            images: images of all processes in this step.
        """
        self._step = step
        self._sums = values if self._sums is None else self._sums.to(values.device) + values
        self._count += 1
        self._images += images
        if self._display:
            self._display.show_step(step)

    def row(self, names: list[str], *, lr: float, meters: dict[str, float]) -> None:
        """Write the row of the steps since the last one; all processes call this.

        Args:
            names: the names of the losses, in the order of the values given to ``add``.
            lr: the learning rate of the last step.
            meters: the task's own numbers.
        """
        if self._sums is None:
            raise ValueError("there is no step to write a row of")
        *losses, gradient_norm = (distributed.average(self._sums) / self._count).tolist()
        now = perf_counter()
        row = {"step": self._step, "time": self._seconds + now - self._start, "lr": lr, "loss": math.fsum(losses)}
        row |= {f"losses/{name}": value for name, value in zip(names, losses, strict=False)}
        row |= {"gradient_norm": gradient_norm, "images_per_second": self._images / (now - self._mark)}
        row |= {"data_wait": self._waited / (now - self._mark)}
        row |= {f"meters/{name}": value for name, value in meters.items()}
        self._write(row)
        if self._display:
            self._display.show_row(row)
        self._sums, self._count = None, 0
        self._clear_speed()

    def evaluation(self, metrics: dict[str, float]) -> None:
        """Write the row of an evaluation after the last step."""
        self._write({"step": self._step} | {f"eval/{name}": value for name, value in metrics.items()})
        if self._display:
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self._display.line(f"evaluation after step {self._step}: {numbers}")

    def warn(self, message: str) -> None:
        """Say something the user must not miss, once in a run, and keep it in ``metrics.jsonl``."""
        if message not in self._said:
            self._said.append(message)
            self._write({"step": self._step, "warning": message})
            if self._display:
                self._display.line(f"WARNING: {message}", style="bold yellow")

    def fault(self, message: str, files: list[str]) -> None:
        """Keep in ``metrics.jsonl`` what ended the run, with all its image files."""
        self._write({"step": self._step, "error": message, "files": files})

    def state_dict(self) -> dict[str, Any]:
        """Return what the rows still to come depend on; all processes call this."""
        sums = None if self._sums is None else distributed.average(self._sums)
        seconds = self._seconds + perf_counter() - self._start
        return {"seconds": seconds, "sums": sums, "count": self._count, "said": list(self._said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._seconds, self._said = state["seconds"], list(state["said"])
        self._sums, self._count = state["sums"], state["count"]

    def _clear_speed(self) -> None:
        self._mark = perf_counter()
        self._waited = 0.0
        self._images = 0

    def _write(self, row: dict[str, Any]) -> None:
        if not self._writes:
            return
        row = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._events:
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._events.add_scalar(key, value, self._step)
            self._events.flush()


def _truncate(path: Path, step: int) -> None:
    """Drop rows after ``step`` and a last line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text(path, "".join(kept))

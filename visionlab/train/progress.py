"""The progress of a run on a console."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0  # of progress, where the output is no terminal


class ProgressDisplay:
    """Progress on a console: one line that changes on a terminal, a new line now and then elsewhere."""

    def __init__(self, steps: int, console: Console) -> None:
        self._steps = steps
        self._console = console
        bar = [BarColumn(bar_width=20)] if console.width >= 110 else []
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            *bar,
            TextColumn("{task.description}", markup=False),
            console=console,
            auto_refresh=False,  # a thread that refreshes and workers that fork do not go together
        )
        self._drawn = -math.inf

    @contextmanager
    def shown(self, step: int) -> Iterator[None]:
        self._first = step
        self._start = perf_counter()
        if not self._console.is_terminal:
            yield
            return
        task = self._bar.add_task("", total=self._steps, completed=step)
        with self._bar:
            yield
            self._bar.update(task, refresh=True)

    def show_step(self, step: int) -> None:
        if self._bar.tasks and perf_counter() - self._drawn > 0.2:
            self._drawn = perf_counter()
            self._bar.update(self._bar.task_ids[0], completed=step, refresh=True)

    def show_row(self, row: dict[str, Any]) -> None:
        step, now = row["step"], perf_counter()
        left = (now - self._start) / max(1, step - self._first) * (self._steps - step)
        text = (
            f"loss {row['loss']:.4g}  lr {row['lr']:.3g}  {row['images_per_second']:.1f} images/s  "
            f"data wait {row['data_wait']:.0%}  {timedelta(seconds=round(left))} left"
        )
        if self._bar.tasks:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text, refresh=True)
        elif step == self._steps or now - self._drawn >= SECONDS_BETWEEN_LINES:
            self._drawn = now
            self.line(f"step {step}/{self._steps}  {text}")

    def line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

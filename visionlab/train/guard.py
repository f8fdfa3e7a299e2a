"""What ends a run before its last step: a number that is not finite, or a signal."""

from __future__ import annotations

import math
import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from visionlab import distributed


class NonFiniteError(FloatingPointError):
    """A loss or gradient was infinite or not a number.

    Attributes:
        step: the step it happened in, as in the rows of the log.
        name: the name of the loss, or ``gradient``.
        files: the images of that step, on the process that saw it.
    """

    def __init__(self, step: int, name: str, value: float, files: list[str]) -> None:
        shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
        what = "the gradient" if name == "gradient" else f"the loss {name}"
        super().__init__(f"{what} is {value} in step {step}; images: {shown or 'unknown'}")
        self.step, self.name, self.files = step, name, files


class Interrupted(RuntimeError):
    """A signal asked the run to stop, and it has, with a checkpoint.

    Attributes:
        signal: the number of the signal; a command line exits with 128 + this.
    """

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}, checkpoint written; the same command goes on from here")
        self.signal = number


class Guard:
    """Watches the numbers and the signals of a run; a context manager.

    To avoid waiting for the device at each step, values stay there until ``settle`` reads those of the last few steps
    together. SIGINT and SIGTERM are noted instead of obeyed at once; a second one of the same kind acts as usual.

    Args:
        look_every: steps after which ``settle`` is due; 1 where values are at hand anyway.
    """

    def __init__(self, look_every: int) -> None:
        self.look_every = look_every
        self.received: int | None = None
        self._watched: list[tuple[int, list[str], Tensor, list[str]]] = []
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Guard:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._previous:
            self._restore(number)

    def due(self, step: int) -> bool:
        """Return whether ``settle`` is due after ``step``; processes agree on that without a word."""
        alone = distributed.world_size() == 1
        return step % self.look_every == 0 or (alone and self.received is not None)

    def watch(self, step: int, names: list[str], values: Tensor, files: list[str]) -> None:
        """Remember the values of one step until ``settle``.

        Args:
            step: the step, as in the rows of the log.
            names: what the first values are; those after them are not watched.
            values: ``(N,)`` float, on any device.
            files: the images that went in.
        """
        self._watched.append((step, names, values, files))

    def settle(self) -> int | None:
        """Read what was watched and agree with the other processes whether the run goes on.

        Returns:
            The number of a signal that any process has received, or None.

        Raises:
            NonFiniteError: on every process, for the first value that is not finite on any.
        """
        verdicts = distributed.gather_objects((self._first_fault(), self.received))
        faults = [fault for fault, _ in verdicts if fault]
        if faults:
            raise NonFiniteError(*min(faults, key=lambda fault: fault[0]))
        return next((number for _, number in verdicts if number), None)

    def _first_fault(self) -> tuple[int, str, float, list[str]] | None:
        watched, self._watched = self._watched, []
        if not watched:
            return None
        rows = torch.stack([values for _, _, values, _ in watched]).tolist()
        for (step, names, _, files), row in zip(watched, rows, strict=True):
            for name, value in zip(names, row, strict=False):
                if not math.isfinite(value):
                    return step, name, value, files
        return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore(number)

    def _restore(self, number: int) -> None:
        previous = self._previous[number]
        signal.signal(number, signal.SIG_DFL if previous is None else previous)

"""The peak memory of a piece of work, where the machine can measure it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class MemoryRise:
    """The rise of the largest memory in use above what is in use now: of tensors on a GPU, else of this process.

    On a CPU it is the resident memory without that of worker processes, measured on Linux only. Its high-water mark is
    reset first, so that nothing done before counts, and memory that was freed is given back, so that using it again
    counts.

    Args:
        device: where the work computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._start: float | None = torch.cuda.memory_allocated(device) / 2**20
            return
        _give_back()
        self._start = _status("VmRSS") if _reset_high_water_mark() else None

    def megabytes(self) -> float | None:
        """Return the rise so far in units of 2^20 bytes; None where the high-water mark cannot be reset."""
        if self._start is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20 - self._start
        peak = _status("VmHWM")
        return None if peak is None else max(0.0, peak - self._start)


def _give_back() -> None:
    """Return freed memory to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_high_water_mark() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> float | None:
    lines = STATUS.read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)

"""Times and memory: interleaved runs, medians and quartiles; what this machine can copy and multiply."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from operators.cases import Work


def timer(device: str) -> Callable[[Callable[[], Any]], float]:
    """Return a function that says how many seconds a call takes, on the device's own clock where it has one.

    The device ``"process"`` is the CPU, by the time that its cores spend on this process: with one thread, what the
    call would take on a machine without other load.
    """
    clock = time.process_time if device == "process" else time.perf_counter

    def on_cpu(call: Callable[[], Any]) -> float:
        begin = clock()
        call()
        return clock() - begin

    def on_cuda(call: Callable[[], Any]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    return on_cuda if device == "cuda" else on_cpu


def interleave(
    calls: dict[str, Callable[[], Any]], device: str, seconds: float, repeats: int
) -> dict[str, dict[str, float]]:
    """Time calls in turn, so that other load on the machine affects all of them alike.

    Args:
        calls: what to time, by name.
        device: ``"cpu"``, ``"process"`` or ``"cuda"``; see ``timer``.
        seconds: stop after about this long, but not before every call ran 3 times.
        repeats: the most rounds. A call faster than half of the slowest one runs up to 5 times in a round.

    Returns:
        For each name ``median``, ``q1``, ``q3`` in seconds and the number of ``runs``.
    """
    clock = timer(device)
    for call in calls.values():
        call()
    first = {name: clock(call) for name, call in calls.items()}
    slowest = max(first.values())
    times = {name: [taken] for name, taken in first.items()}
    begin = time.perf_counter()
    for done in range(1, repeats):
        for name, call in calls.items():
            for _ in range(min(5, max(1, int(slowest / 2 / max(first[name], 1e-7))))):
                times[name].append(clock(call))
        if done >= 2 and time.perf_counter() - begin > seconds:
            break
    return {name: spread(taken) for name, taken in times.items()}


def spread(times: list[float]) -> dict[str, float]:
    """Return the median and the quartiles of at least two times."""
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "runs": len(times)}


def passes(call: Callable[[], Any], leaves: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """Return what to time: the call without gradients and, where it has leaves, with those of all of them."""

    def forward() -> Any:
        with torch.no_grad():
            return call()

    if not leaves:
        return {"forward": forward}
    answer = forward()
    generator = torch.Generator(answer.device).manual_seed(1)
    incoming = torch.empty_like(answer).normal_(generator=generator)

    def both() -> Any:
        output = call()
        return output, torch.autograd.grad(output, leaves, incoming)

    return {"forward": forward, "forward+backward": both}


def gemms(shapes: list[tuple[int, int, int]], device: str, dtype: torch.dtype) -> Callable[[], None]:
    """Return a call that multiplies matrices of these sizes and does nothing else."""
    wide = dtype if device == "cuda" or dtype == torch.float64 else torch.float32  # kernels compute halves in float32
    factors = [
        (
            torch.randn(rows, inner, device=device, dtype=wide),
            torch.randn(inner, columns, device=device, dtype=wide),
            torch.empty(rows, columns, device=device, dtype=wide),
        )
        for rows, inner, columns in shapes
    ]

    def multiply() -> None:
        for left, right, answer in factors:
            torch.mm(left, right, out=answer)

    return multiply


def rates(device: str, dtypes: list[torch.dtype]) -> dict[str, float]:
    """Measure this machine: bytes per second of a large copy (read and written), operations per second of a product."""
    source = torch.ones(2**25 if device == "cpu" else 2**28, device=device)
    target = torch.empty_like(source).zero_()
    copied = interleave({"copy": lambda: target.copy_(source)}, device, 0.5, 20)["copy"]["median"]
    found = {"copy": 2 * source.numel() * 4 / copied}
    size = 2048 if device == "cpu" else 8192
    for dtype in dtypes:
        wide = dtype if device == "cuda" or dtype == torch.float64 else torch.float32
        multiply = gemms([(size, size, size)], device, wide)
        found[str(dtype).removeprefix("torch.")] = (
            2 * size**3 / interleave({"": multiply}, device, 0.5, 10)[""]["median"]
        )
    return found


def release_freed_buffers() -> None:
    """Make free() return every buffer of 64 KiB or more to the system, so that the peak of one call can be seen."""
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD


def extra_memory(call: Callable[[], Any], device: str, *, warm: bool = True) -> int:
    """Return the bytes that a call needs at its peak beyond what it was given and what it returns.

    On the CPU this is the resident memory of the process, whoever allocated it; ``release_freed_buffers`` comes first.

    Args:
        call: what to measure.
        device: ``"cpu"`` or ``"cuda"``.
        warm: call it once before, so that what it keeps for the next call does not count.
    """
    if warm:
        call()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, answer = torch.cuda.memory_allocated(), call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - returned(answer)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before, answer = resident("VmRSS"), call()
    return max(0, resident("VmHWM") - before - returned(answer))


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def returned(answer: Any) -> int:
    if isinstance(answer, Tensor):
        return answer.numel() * answer.element_size()
    return sum(returned(part) for part in answer) if isinstance(answer, tuple | list) else 0


def limit(work: Work, step: str, rates: dict[str, float], dtype: str) -> tuple[float, str]:
    """Return a lower bound of the seconds on this machine, and what sets it."""
    cost = work.forward + work.backward if step == "forward+backward" and work.backward else work.forward
    bounds = {"bandwidth": cost.bytes / rates["copy"], "arithmetic": cost.operations / rates[dtype]}
    by = max(bounds, key=lambda name: bounds[name])
    return bounds[by], by

"""Runs the benchmark's cases: one row for each case, dtype, memory format and pass."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from operators import measure
from operators.cases import CASES, Case, Make
from operators.samples import counterpart, samples


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        ops: names of operators.
        dtypes: names of dtypes.
        threads: numbers of threads on the CPU; everything runs with the last, the first shows how it scales.
        seconds: for one row.
        repeats: the most rounds of one row.
        quick: one case of each operator.
    """

    device: str
    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    threads: tuple[int, ...]
    seconds: float
    repeats: int
    quick: bool

    def cases(self) -> Iterator[tuple[Case, str, str]]:
        for case in CASES:
            if case.op in self.ops and (case.quick or not self.quick):
                for dtype in self.dtypes:
                    for layout in case.layouts:
                        yield case, dtype, layout


def torchvision_ops() -> tuple[Any, str]:
    """Return torchvision's operators, or None and why."""
    try:
        import torchvision
    except Exception as error:
        return None, " ".join(f"torchvision does not import: {error}".split())
    return torchvision.ops, torchvision.__version__


def run(plan: Plan, memory: dict[str, int], say: Callable[[str], None]) -> tuple[dict[str, float], list[dict]]:
    """Measure the machine and all cases of a plan."""
    if plan.device == "cpu":
        torch.set_num_threads(plan.threads[-1])
    peer, _ = torchvision_ops()
    rates = measure.rates(plan.device, [getattr(torch, dtype) for dtype in plan.dtypes])
    rows = []
    for case, dtype, layout in plan.cases():
        begin = time.perf_counter()
        rows += _rows(plan, case, dtype, layout, peer, rates, memory)
        say(f"{case.op} {case.label} {dtype} {layout}: {time.perf_counter() - begin:.1f} s")
    return rates, rows


def key(case: Case, dtype: str, layout: str, step: str) -> str:
    return " / ".join((case.op, case.label, dtype, layout, step))


def _rows(
    plan: Plan, case: Case, dtype: str, layout: str, peer: Any, rates: dict[str, float], memory: dict[str, int]
) -> Iterator[dict]:
    work = case.make(Make(plan.device, getattr(torch, dtype), layout, peer))
    calls = {"ours": measure.passes(work.ours, work.leaves)}
    reason = "it has none" if work.theirs is None else ""
    if work.theirs is not None:
        try:
            calls["theirs"] = measure.passes(work.theirs, work.leaves)
        except Exception as error:
            reason = " ".join(f"it refuses: {error}".split())[:80]
    if work.conv2d is not None:
        calls["conv2d"] = measure.passes(work.conv2d, work.conv2d_leaves)
    for step in calls["ours"]:
        ready = {name: of[step] for name, of in calls.items()}
        if step in work.gemms:
            ready["gemms"] = measure.gemms(work.gemms[step], plan.device, getattr(torch, dtype))
        times = measure.interleave(ready, plan.device, plan.seconds, plan.repeats)
        ours = times["ours"]["median"]
        bound, by = measure.limit(work, step, rates, dtype)
        extra = memory.get(key(case, dtype, layout, step))
        row = {
            "op": case.op,
            "label": case.label,
            "dtype": dtype,
            "layout": layout,
            "pass": step,
            "device": plan.device,
        }
        row |= {
            "times": times,
            "ratio": None,
            "torchvision": reason,
            "limit": bound,
            "limit_by": by,
            "of_limit": bound / ours,
        }
        row |= {"extra_bytes": measure.extra_memory(ready["ours"], "cuda") if plan.device == "cuda" else extra}
        if "theirs" in times:
            row["ratio"] = times["theirs"]["median"] / ours
        if "conv2d" in times:
            row["over_conv2d"], row["gemm_share"] = ours / times["conv2d"]["median"], times["gemms"]["median"] / ours
        if plan.device == "cpu" and len(plan.threads) > 1:
            row |= _scaling(plan, ready["ours"], work, step, rates)
        yield row


def _scaling(plan: Plan, call: Callable, work: Any, step: str, rates: dict[str, float]) -> dict[str, float]:
    """Compare few threads with many; the target is 1.7 times as fast, or 80 % of the bandwidth."""
    try:
        samples: dict[int, list[float]] = {threads: [] for threads in plan.threads}
        clock, begin = measure.timer("cpu"), time.perf_counter()
        while len(samples[plan.threads[0]]) < 3 or (
            time.perf_counter() - begin < plan.seconds / 3 and len(samples[plan.threads[0]]) < plan.repeats
        ):
            for threads in (plan.threads[0], plan.threads[-1]):
                torch.set_num_threads(threads)
                call()
                samples[threads].append(clock(call))
    finally:
        torch.set_num_threads(plan.threads[-1])
    few, many = (statistics.median(samples[threads]) for threads in (plan.threads[0], plan.threads[-1]))
    cost = work.forward + work.backward if step == "forward+backward" else work.forward
    share = max(few / many / 1.7, cost.bytes / rates["copy"] / many / 0.8)
    return {"few_threads": few, "scaling": few / many, "scaling_share": share}


def overhead(plan: Plan) -> list[dict]:
    """Time tiny calls: what Python, checks and dispatch cost, in microseconds above torchvision's."""
    peer, _ = torchvision_ops()
    rows = []
    rounds = 200 if plan.quick else 1000
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for step in ("forward", "forward+backward"):
        for sample in samples(plan.device, grad=step != "forward", side=2):
            if sample.op not in plan.ops or (step != "forward" and not sample.leaves):
                continue
            calls: dict[str, Callable] = {"ours": lambda sample=sample: sample.call()}
            if counterpart(sample.op, peer):
                calls["theirs"] = lambda sample=sample: sample.call(peer)
            if step != "forward":
                calls = {
                    name: lambda call=call, sample=sample: sample.gradients(call()) for name, call in calls.items()
                }
            for call in calls.values():
                for _ in range(20):
                    call()
            times = {name: [] for name in calls}
            for _ in range(rounds):
                for name, call in calls.items():
                    begin = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - begin)
            row: dict = {"op": sample.op, "label": "tiny", "dtype": "float32", "layout": "contiguous", "pass": step}
            row |= {"device": plan.device, "times": {name: measure.spread(taken) for name, taken in times.items()}}
            if "theirs" in times:
                row["overhead_us"] = 1e6 * (row["times"]["ours"]["median"] - row["times"]["theirs"]["median"])
            rows.append(row)
    torch.set_num_threads(threads)
    return rows


def memory_here(plan: Plan) -> dict[str, int]:
    """Measure the peak of every case on the CPU, in a process where freed buffers go back to the system."""
    measure.release_freed_buffers()
    torch.set_num_threads(plan.threads[-1])
    found = {}
    for case, dtype, layout in plan.cases():
        work = case.make(Make("cpu", getattr(torch, dtype), layout, None))
        for step, call in measure.passes(work.ours, work.leaves).items():
            found[key(case, dtype, layout, step)] = measure.extra_memory(call, "cpu")
    return found


def memory(arguments: list[str]) -> dict[str, int]:
    """The same, in a process of its own that is started with the command line's arguments."""
    command = [sys.executable, str(Path(__file__).parent.parent / "benchmark_ops.py"), *arguments, "--memory"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory of the operators could not be measured: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])

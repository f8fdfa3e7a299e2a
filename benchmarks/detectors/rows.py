"""What is measured of the two detectors, row by row."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from operators.measure import extra_memory, interleave, release_freed_buffers
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from detectors.pair import Pair, Size, agreement, build_pair, check_same
from detectors.parts import clocks, time_inference, time_training

# Convolutions and linear layers, each with what it calls; `mm` is what a linear layer's gradients call.
PRODUCTS = ("aten::conv2d", "aten::convolution_backward", "aten::linear", "aten::mm")
COMPILED_ROUNDS = 3
LEARNING_RATE = 1e-6  # so small that every step finds the same proposals


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: ``inference``, ``training``, ``bf16`` (inference in bfloat16), ``compile`` (training, backbone and neck
            compiled) or ``parts`` (where the time of ours goes).
        size: height and width of the images.
        threads: of torch.
    """

    what: str
    size: Size
    threads: int

    @property
    def name(self) -> str:
        """What ``--only`` finds it by."""
        return f"{self.what} {self.size[0]}x{self.size[1]} {self.threads}t"


def rows(sizes: list[Size], threads: list[int]) -> list[Row]:
    """Return all rows."""
    kinds = ("inference", "training", "bf16", "compile", "parts")
    return [Row(what, size, count) for what in kinds for size in sizes for count in threads]


def measure(row: Row, *, rounds: int, clock: str) -> dict[str, Any]:
    """Measure one row.

    Args:
        row: what to measure.
        rounds: how often each call is timed.
        clock: ``wall`` or ``process``.
    """
    torch.set_num_threads(row.threads)
    pair = build_pair(row.size)
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "inference": _inference,
        "training": _training,
        "bf16": _half,
        "compile": _compiled,
        "parts": _parts,
    }
    found = measures[row.what](pair, rounds, clock)
    if row.what in ("inference", "training"):
        found["bytes"] = {who: _memory_apart(who, row) for who in ("ours", "theirs")}
    return {**found, "clock": clock, "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}


def _inference(pair: Pair, rounds: int, clock: str) -> dict[str, Any]:
    same = check_same(pair.detect_ours(), pair.detect_theirs())
    times = interleave({"ours": pair.detect_ours, "theirs": pair.detect_theirs}, _device(clock), 0, rounds)
    return {"times": times, "bound": _bound(pair.detect_theirs), "same": same}


def _training(pair: Pair, rounds: int, clock: str) -> dict[str, Any]:
    steps = _steps(pair)
    return {"times": interleave(steps, _device(clock), 0, rounds), "bound": _bound(steps["theirs"])}


def _half(pair: Pair, rounds: int, clock: str) -> dict[str, Any]:
    def narrow() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return pair.detect_ours()

    both = zip(narrow(), pair.detect_ours(), strict=True)
    shares = [agreement(found, wanted, iou=0.5, score=0.05) for found, wanted in both]
    times = interleave({"ours": narrow, "theirs": pair.detect_theirs}, _device(clock), 0, rounds)
    return {"times": times, "same_as_fp32": sum(shares) / len(shares)}


def _compiled(pair: Pair, rounds: int, clock: str) -> dict[str, Any]:
    """Time a step with backbone and neck compiled in turn with the plain one."""
    plain = _steps(build_pair(pair.batch.padded_size))["ours"]
    step = _steps(pair)["ours"]
    for part in (pair.ours.backbone, pair.ours.neck):
        part.compile()
    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin
    times = interleave({"ours": step, "plain": plain}, _device(clock), 0, min(rounds, COMPILED_ROUNDS))
    return {"times": times, "first_step": first}


def _parts(pair: Pair, rounds: int, clock: str) -> dict[str, Any]:
    now = clocks(clock)
    pair.detect_ours()
    inference = [time_inference(pair, now) for _ in range(rounds)]
    _make_trainable(pair)
    optimizer = torch.optim.SGD(pair.ours.parameters(), LEARNING_RATE)
    time_training(pair, now, optimizer)
    training = [time_training(pair, now, optimizer) for _ in range(rounds)]
    return {"inference": _medians(inference), "training": _medians(training)}


def _medians(times: list[dict[str, float]]) -> dict[str, float]:
    return {name: sorted(one.get(name, 0.0) for one in times)[len(times) // 2] for name in times[0]}


def _steps(pair: Pair) -> dict[str, Callable[[], None]]:
    """Return a training step of each detector: losses, gradients, update."""
    _make_trainable(pair)
    losses = {"ours": functools.partial(pair.ours.losses, pair.batch), "theirs": pair.losses_of_theirs}
    networks = {"ours": pair.ours, "theirs": pair.theirs}
    return {who: functools.partial(_step, losses[who], _optimizer(networks[who])) for who in networks}


def _make_trainable(pair: Pair) -> None:
    pair.ours.train().to(memory_format=torch.channels_last)
    pair.theirs.train()


def _optimizer(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([one for one in network.parameters() if one.requires_grad], LEARNING_RATE)


def _step(losses: Callable[[], dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.stack(list(losses().values())).sum().backward()
    optimizer.step()


def _device(clock: str) -> str:
    return "process" if clock == "process" else "cpu"


def _bound(call: Callable[[], Any]) -> float:
    """Return how many times faster a call could be if it did nothing but its convolutions and linear layers."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    events = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return total / sum(event.cpu_time_total for event in events if event.key in PRODUCTS)


def _memory_apart(who: str, row: Row) -> int:
    """Return the peak memory in bytes of a call, beyond the weights, in a process of its own."""
    script = Path(__file__).resolve().parents[1] / "benchmark_detector.py"
    words = [sys.executable, str(script), "--memory", who, row.what, *map(str, row.size), str(row.threads)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if done.returncode:
        raise RuntimeError(f"memory of {who}, {row.name}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def memory(who: str, what: str, size: Size, threads: int) -> int:
    """Return the peak memory in bytes of a detection or of a step, beyond what is there before the first."""
    torch.set_num_threads(threads)
    pair = build_pair(size)
    if what == "training":
        call: Callable[[], Any] = _steps(pair)[who]
    else:
        call = pair.detect_ours if who == "ours" else pair.detect_theirs
    release_freed_buffers()
    return extra_memory(call, "cpu", warm=False)

"""Time our Faster R-CNN (ResNet-50, FPN) beside torchvision's, with the same weights and settings, in turn.

    python benchmarks/benchmark_detector.py                          # all rows that are not in the file yet
    python benchmarks/benchmark_detector.py --only 480x640 1t        # rows whose name has all of these words
    python benchmarks/benchmark_detector.py --only parts --again     # where the time of ours goes, measured anew
    python benchmarks/benchmark_detector.py --clock process          # processor time, for one thread on a busy machine
    python benchmarks/benchmark_detector.py --evaluate RUN           # AP of a trained detector in fp32 and in bf16

Both detect the same objects, which is checked before anything is timed. The bound is torchvision's time over that of
its own convolutions and linear layers: what a detector with the same products could reach if all else took no time. One
image in a batch. A training step is the losses, their gradients and an update by SGD, all parameters but BatchNorm's
trained; ours is laid out channels last, as `visionlab init` writes it. Memory is that of a process of its own, beyond
the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import torchvision
from detectors.agreement import average_precisions
from detectors.parts import BACKWARD, PARTS
from detectors.rows import measure, memory, rows
from operators.report import seconds, table

SIZES = [(480, 640), (800, 1216)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, help="of images, as 480x640")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[], help="words that the name of a row must have")
    parser.add_argument("--again", action="store_true", help="measure rows that are in the file, too")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    parser.add_argument("--json", type=Path, default=Path("build/benchmark/detector.json"))
    parser.add_argument("--evaluate", type=Path, metavar="RUN", help="a run folder of a detector")
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        who, what, height, width, threads = options.memory
        print(memory(who, what, (int(height), int(width)), int(threads)))
        return 0
    if options.evaluate:
        for precision, ap in average_precisions(options.evaluate).items():
            print(f"{precision}: AP {100 * ap:.2f}")
        return 0
    kept = json.loads(options.json.read_text()) if options.json.exists() else {}
    for row in rows(options.sizes, options.threads):
        if all(word in row.name.split() for word in options.only) and (options.again or row.name not in kept):
            print(f"measuring {row.name}", flush=True)
            kept[row.name] = measure(row, rounds=options.rounds, clock=options.clock)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(kept, indent=1))
    show(kept)
    return 0


def show(kept: dict[str, dict[str, Any]]) -> None:
    """Print what was measured."""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}"
    compared = {name: row for name, row in kept.items() if "theirs" in row.get("times", {})}
    head = ["row", "ms ± IQR/2", "torchvision", "faster", "bound", "of bound", "MiB", "torchvision's", "same", "load"]
    table(head, [_compared(name, row) for name, row in compared.items()], f"Faster R-CNN, ResNet-50, FPN; {versions}")
    compiled = [_compiled(name, row) for name, row in kept.items() if "first_step" in row]
    if compiled:
        table(["row", "ms ± IQR/2", "not compiled", "faster", "first step"], compiled, "backbone and neck compiled")
    for name, row in kept.items():
        if "training" in row and "inference" in row:
            names = [*PARTS[:-2], *BACKWARD, *PARTS[-2:]]
            lines = [[part, *(_part(row[task], part) for task in ("inference", "training"))] for part in names]
            table(["part", "inference, ms", "training, ms"], lines, f"where the time of ours goes, {name}")


def _compared(name: str, row: dict[str, Any]) -> list[str]:
    ratio = row["times"]["theirs"]["median"] / row["times"]["ours"]["median"]
    bound, used = row.get("bound"), row.get("bytes", {})
    same = f"{row['same_as_fp32']:.0%} of fp32's" if "same_as_fp32" in row else str(row.get("same", ""))
    return [
        name,
        seconds(row["times"]["ours"]),
        seconds(row["times"]["theirs"]),
        f"{ratio:.2f}x",
        f"{bound:.2f}x" if bound else "",
        f"{ratio / bound:.0%}" if bound else "",
        *(f"{used[who] / 2**20:.0f}" if who in used else "" for who in ("ours", "theirs")),
        same,
        f"{row['load']:.1f}" + (" (process)" if row["clock"] == "process" else ""),
    ]


def _compiled(name: str, row: dict[str, Any]) -> list[str]:
    ours, plain = row["times"]["ours"], row["times"]["plain"]
    ratio = plain["median"] / ours["median"]
    return [name, seconds(ours), seconds(plain), f"{ratio:.2f}x", f"{row['first_step']:.0f} s"]


def _part(times: dict[str, float], part: str) -> str:
    return f"{times[part] * 1e3:.1f} ({times[part] / sum(times.values()):.0%})" if part in times else ""


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


if __name__ == "__main__":
    raise SystemExit(main())

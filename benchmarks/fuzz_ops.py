"""Call every operator with random and hostile arguments, each in its own process, so a crash ends only one.

    python benchmarks/fuzz_ops.py                                     # 1000 cases of each
    python benchmarks/fuzz_ops.py --ops nms --seed 0 --case 17        # one case again, as a failure prints it
    make sanitize                                                # 100000 of each, under the sanitizers

A case depends on (seed, operator, number) alone. The level `scalar` runs the arithmetic of the CUDA kernels on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

STALLED = 120  # seconds without a new case after which a process counts as hanging
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


@dataclass
class Task:
    """The cases of one operator that one process runs."""

    op: str
    level: str
    first: int
    cases: int
    progress: Path
    log: Path
    process: subprocess.Popen | None = None
    last: tuple[str, float] = ("", 0.0)
    result: dict = field(default_factory=dict)

    def again(self, number: object, options: argparse.Namespace) -> str:
        level = f"VISIONLAB_SIMD={self.level} " if self.level else ""
        sanitized = " --sanitized" if options.sanitized else ""
        return f"{level}python benchmarks/fuzz_ops.py{sanitized} --ops {self.op} --seed {options.seed} --case {number}"


def environment(level: str, sanitized: bool) -> dict[str, str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    if level:
        settings["VISIONLAB_SIMD"] = level
    if sanitized:
        # libstdc++ too: without it the sanitizer does not know the function that throws, and ends at the first throw.
        libraries = [
            subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
            for name in ("libasan.so", "libstdc++.so.6")
        ]
        settings |= {"LD_PRELOAD": " ".join(libraries), **SANITIZERS}
    return settings


def start(task: Task, options: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--worker", str(task.progress), "--ops", task.op, "--device", options.device]
    command += ["--seed", str(options.seed), "--first", str(task.first), "--cases", str(task.cases)]
    command += ["--sanitized"] * options.sanitized
    with task.log.open("w") as log:
        task.process = subprocess.Popen(
            command, env=environment(task.level, options.sanitized), stdout=log, stderr=subprocess.STDOUT
        )
    task.last = ("", time.monotonic())


def watch(task: Task, options: argparse.Namespace) -> bool:
    """Return whether the process has ended; then ``task.result`` says how."""
    now = task.progress.read_text().strip() if task.progress.exists() else ""
    if now != task.last[0]:
        task.last = (now, time.monotonic())
    code = task.process.poll()
    if code is None and time.monotonic() - task.last[1] > STALLED:
        task.process.kill()
        code, why = task.process.wait(), f"a case took more than {STALLED} s"
    elif code is None:
        return False
    else:
        why = f"the process ended with {code}"
    lines = task.log.read_text(errors="replace").splitlines()
    if code == 0 and lines:
        task.result = json.loads(lines[-1])
    else:
        found = [i for i, line in enumerate(lines) if "runtime error:" in line or "ERROR: AddressSanitizer" in line]
        text = "\n    ".join(lines[found[0] : found[0] + 16] if found else lines[-20:])
        task.result = {"faults": [f"{why}\n    {text}\n  again: {task.again(now or task.first, options)}"]}
    for number, text in task.result.pop("faulty", []):
        task.result["faults"].append(f"{text}\n  again: {task.again(number, options)}")
    return True


def work(options: argparse.Namespace) -> int:
    """Run the cases of one task in this process; the parent reads which one it is at."""
    import torch
    from operators import fuzz

    from visionlab import _native

    if options.sanitized and b"__asan_init" not in _native.cpu_library().path.read_bytes():
        print(f"{_native.cpu_library().path} was built without the sanitizers: run `make sanitize`")
        return 1
    torch.set_num_threads(1)
    counts: dict = {"returned": 0, "refused": 0, "faults": [], "faulty": []}
    begin = time.perf_counter()
    with open(options.worker, "w") as progress:
        for number in range(options.first, options.first + options.cases):
            progress.seek(0)
            progress.write(f"{number}\n")
            progress.flush()
            try:
                counts[fuzz.run(options.ops[0], options.seed, number, options.device)] += 1
            except fuzz.FuzzFailure as fault:
                counts["faulty"].append((number, str(fault)))
                if len(counts["faulty"]) == 5:
                    break
    print("\n" + json.dumps({**counts, "seconds": time.perf_counter() - begin}))
    return 0


def one_case(options: argparse.Namespace) -> int:
    if options.sanitized and "LD_PRELOAD" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], environment("", True))
    from operators import fuzz

    for op in options.ops:
        print(op, fuzz.run(op, options.seed, options.case, options.device))
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.worker:
        return work(options)
    if options.case is not None:
        return one_case(options)
    begin = time.monotonic()
    print(f"seed {options.seed}, {options.cases} cases of each operator at each level, {options.processes} processes")
    with tempfile.TemporaryDirectory() as folder:
        tasks = plan(options, Path(folder))
        waiting, running = list(tasks), []
        while waiting or running:
            while waiting and len(running) < options.processes:
                running.append(waiting.pop(0))
                start(running[-1], options)
            time.sleep(0.05)
            running = [task for task in running if not watch(task, options)]
    failed = sum(report(op, level, [task for task in tasks if (task.op, task.level) == (op, level)])
                 for op in options.ops for level in options.levels)  # fmt: skip
    print(f"{'FAILED' if failed else 'passed'} in {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


def plan(options: argparse.Namespace, folder: Path) -> list[Task]:
    parts = -(-options.processes // (len(options.ops) * len(options.levels)))
    edges = [options.cases * part // parts for part in range(parts + 1)]
    names = [(level, op, part) for level in options.levels for op in options.ops for part in range(parts)]
    return [
        Task(op, level, edges[part], edges[part + 1] - edges[part], folder / f"{i}.case", folder / f"{i}.log")
        for i, (level, op, part) in enumerate(names)
    ]


def report(op: str, level: str, tasks: list[Task]) -> bool:
    faults = [fault for task in tasks for fault in task.result["faults"]]
    total = {key: sum(task.result.get(key, 0) for task in tasks) for key in ("returned", "refused", "seconds")}
    counts = f"{total['returned']:8} returned {total['refused']:8} refused {total['seconds']:7.0f} s"
    print(f"{'FAIL' if faults else 'ok':4} {op:24}{level or 'best':8}{counts}")
    print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
    return bool(faults)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=lambda text: text.split(","), help="operators, separated by commas; default all")
    parser.add_argument("--cases", type=int, default=1000, help="cases of each operator at each level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one case here")
    parser.add_argument("--levels", type=lambda text: text.split(","), default=[""], help="such as ,scalar")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--sanitized", action="store_true", help="the library is a sanitizer's build")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.ops is None:
        from operators.names import OPERATORS

        options.ops = OPERATORS
    return options


if __name__ == "__main__":
    sys.exit(main())

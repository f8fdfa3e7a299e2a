"""Measure visionlab.ops against torchvision.ops and against what the machine can do.

    python benchmarks/benchmark_ops.py                        # the whole table, about eleven minutes on two cores
    python benchmarks/benchmark_ops.py --ops nms,box_iou      # some operators
    python benchmarks/benchmark_ops.py --quick                # one case of each
    python benchmarks/benchmark_ops.py --page FILE.json       # put measured figures into BENCHMARKS.md

Writes FILE.json and FILE.png. Both libraries run in one process on the same tensors, in turn; BENCHMARKS.md says how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

from operators import report
from operators.names import OPERATORS

PAGE = Path(__file__).parent.parent / "BENCHMARKS.md"


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.page:
        report.write_page(json.loads(options.page.read_text()), PAGE)
        return 0
    from operators import benchmark

    plan = benchmark.Plan(
        options.device,
        tuple(options.ops),
        tuple(options.dtypes or (["float32"] if options.device == "cpu" else ["float32", "float16", "bfloat16"])),
        tuple(options.threads),
        options.seconds or (0.3 if options.quick else 1.5),
        options.repeats,
        options.quick,
    )
    if options.memory:
        print(json.dumps(benchmark.memory_here(plan)))
        return 0
    return measure(plan, options, arguments)


def measure(plan, options: argparse.Namespace, arguments: list[str]) -> int:
    from operators import benchmark, targets

    memory = benchmark.memory(arguments) if plan.device == "cpu" else {}
    results: dict = {"machine": machine(plan, arguments)}
    results["rates"], results["rows"] = benchmark.run(plan, memory, lambda text: print(text, file=sys.stderr))
    results["overhead"] = benchmark.overhead(plan)
    results["targets"] = targets.judge([*results["rows"], *results["overhead"]])
    report.show(results)
    path = options.out or Path("build", "benchmark", f"{plan.device}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    written = [str(path)]
    try:
        report.chart(results, path.with_suffix(".png"))
        written.append(str(path.with_suffix(".png")))
    except ImportError as error:
        print(f"no chart: {error}")
    print("wrote " + " and ".join(written))
    return 0


def machine(plan, arguments: list[str]) -> dict:
    import torch
    from operators.benchmark import torchvision_ops

    from visionlab import __version__, _native

    return {
        "kind": plan.device,
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else processor(),
        "threads": plan.threads[-1] if plan.device == "cpu" else torch.get_num_threads(),
        "simd": torch.ops.visionlab.simd_level() if _native.cpu_library().loaded else "none: not compiled",
        "visionlab": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision_ops()[1],
        "python": platform.python_version(),
        "command": " ".join(["python benchmarks/benchmark_ops.py", *arguments]),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return sorted(int(part) for part in text.split(","))

    parser.add_argument("--ops", type=names, default=OPERATORS, help="separated by commas; default all")
    parser.add_argument("--dtypes", type=names, help="default float32 on a CPU, float32,float16,bfloat16 on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=numbers, default=sorted({1, os.cpu_count() or 1}), help="such as 1,2")
    parser.add_argument("--repeats", type=int, default=30, help="the most rounds of one row")
    parser.add_argument("--seconds", type=float, help="about how long one row may take; slow operators take 3 rounds")
    parser.add_argument("--quick", action="store_true", help="one case of each operator, little time for each")
    parser.add_argument("--out", type=Path, help="the JSON file; the chart goes beside it")
    parser.add_argument("--page", type=Path, metavar="JSON", help="put these figures into BENCHMARKS.md and stop")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.ops) - set(OPERATORS)):
        parser.error(f"no operator {', '.join(unknown)}; there are {', '.join(OPERATORS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())

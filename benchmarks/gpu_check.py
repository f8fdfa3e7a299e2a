"""Build, test and time visionlab.ops on a machine with a GPU, in one go of at most eight minutes.

    python benchmarks/gpu_check.py

Needs torch with CUDA, nvcc and ninja. Writes one JSON and prints one table. Exit code: 0 if nothing failed, 1 if
something did, 2 if there is no GPU. What could not be run is called skipped, with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from operators import report

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("compiled", "agreement", "streams", "graphs", "guard", "determinism", "synchronization", "hostile")


@dataclass(frozen=True)
class Step:
    """One thing to run in a process of its own.

    Args:
        name: what the table calls it.
        command: the process, or empty where it cannot run.
        most: seconds that it may take.
        skipped: why it cannot run.
        verdict: whether its last line is a verdict as JSON; otherwise the exit code is.
    """

    name: str
    command: tuple[str, ...] = ()
    most: float = 60
    skipped: str = ""
    verdict: bool = False


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    seconds: float
    detail: str


def find_gpu() -> dict | None:
    """Describe the GPUs, or return None where torch sees none. In a process of its own, which leaves the GPU alone."""
    code = (
        "import json, torch\n"
        "gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]\n"
        "print(json.dumps({'gpus': [gpu.name for gpu in gpus], 'arch': gpus and f'{gpus[0].major}{gpus[0].minor}',"
        " 'torch': torch.__version__, 'cuda': torch.version.cuda}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    return found if found.get("gpus") else None


def plan(out: Path, quick_tests: bool) -> list[Step]:
    """Everything to run, in order."""
    python = sys.executable
    section = (python, "-m", "operators.gpu")
    sanitizer = shutil.which("compute-sanitizer") or next(
        (path for path in ("/usr/local/cuda/bin/compute-sanitizer",) if Path(path).exists()), None
    )
    tests = (python, "-m", "pytest", "-q", "-x", "-m", "cuda", "-p", "no:cacheprovider", "tests/ops")
    benchmark = (python, "benchmarks/benchmark_ops.py", "--device=cuda", "--quick", f"--out={out / 'benchmark.json'}")
    memcheck = (str(sanitizer), "--tool", "memcheck", "--error-exitcode", "9", *section, "hostile", "4")
    steps = [
        Step("build", (python, "setup.py", "-q", "build_ext", "--inplace"), 200),
        *(Step(name, (*section, name), 60, verdict=True) for name in SECTIONS),
        Step("memcheck", memcheck, 90, "" if sanitizer else "there is no compute-sanitizer", True),
        Step("tests", tests, 150, "" if importlib.util.find_spec("pytest") else "pytest is not installed"),
        Step("benchmark", benchmark, 120),
    ]
    return [step for step in steps if step.name != "tests"] if quick_tests else steps


def run(step: Step, environment: dict[str, str], left: float) -> Outcome:
    """Run a step for at most its time and what is left of all."""
    if step.skipped:
        return Outcome(step.name, "skipped", 0, step.skipped)
    if left < 5:
        return Outcome(step.name, "skipped", 0, "the eight minutes were over")
    begin = time.monotonic()
    try:
        done = subprocess.run(
            step.command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=min(step.most, left)
        )
    except subprocess.TimeoutExpired:
        return Outcome(step.name, "failed", time.monotonic() - begin, f"not done after {min(step.most, left):.0f} s")
    taken = time.monotonic() - begin
    lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    if step.verdict and (said := [line for line in lines if line.startswith('{"status"')]):
        verdict = json.loads(said[-1])
        if done.returncode and verdict["status"] != "failed":  # memcheck found what the check itself did not
            verdict = {"status": "failed", "detail": " / ".join(lines[-8:])}
        return Outcome(step.name, verdict["status"], taken, verdict["detail"])
    if done.returncode:
        return Outcome(step.name, "failed", taken, f"exit code {done.returncode}: " + " / ".join(lines[-8:]))
    return Outcome(step.name, "passed", taken, lines[-1] if lines else "")


def write(out: Path, gpu: dict, outcomes: list[Outcome], seconds: float) -> bool:
    """Write the one JSON, print the one table; return whether nothing failed."""
    passed = not any(outcome.status == "failed" for outcome in outcomes)
    measured = out / "benchmark.json"
    benchmark = json.loads(measured.read_text()) if measured.exists() else None
    content = {"gpu": gpu, "passed": passed, "seconds": seconds, "steps": [asdict(outcome) for outcome in outcomes]}
    (out / "gpu_check.json").write_text(json.dumps({**content, "benchmark": benchmark}, indent=1) + "\n")
    if benchmark:
        report.show(benchmark)
    cells = [[o.name, o.status, f"{o.seconds:.0f} s", o.detail[:120]] for o in outcomes]
    report.table(["step", "status", "time", "detail"], cells, f"{', '.join(gpu['gpus'])}: {seconds:.0f} s")
    for outcome in outcomes:
        if outcome.status == "failed":
            print(f"\n{outcome.name} failed: {outcome.detail}")
    print(f"wrote {out / 'gpu_check.json'}")
    return passed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_check", help="folder of the JSON")
    parser.add_argument("--minutes", type=float, default=7.8, help="stop starting steps after this long")
    parser.add_argument("--no-tests", action="store_true", help="leave out pytest, for a second look")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    gpu = find_gpu()
    if gpu is None:
        print("gpu_check: no GPU: torch sees none on this machine, so nothing was run", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").unlink(missing_ok=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "VISIONLAB_CUDA_ARCHS": gpu["arch"]}
    outcomes = []
    for step in plan(out, options.no_tests):
        print(f"{step.name} ...", flush=True)
        outcomes.append(run(step, environment, 60 * options.minutes - (time.monotonic() - begin)))
        if step.name == "build" and outcomes[-1].status == "failed":
            break
    return 0 if write(out, gpu, outcomes, time.monotonic() - begin) else 1


if __name__ == "__main__":
    sys.exit(main())

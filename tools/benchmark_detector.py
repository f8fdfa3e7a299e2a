"""The same as `python benchmarks/benchmark_detector.py`."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / "benchmark_detector.py"), run_name="__main__")

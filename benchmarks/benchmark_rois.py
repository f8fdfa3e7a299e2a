"""Time a detection against the number of RoIs: R-FCN beside Faster R-CNN on one level (C4) and on a pyramid (FPN).

    python benchmarks/benchmark_rois.py                        # build/benchmark/rois.json and rois.svg
    python benchmarks/benchmark_rois.py --only R-FCN --rois 100 300
    python benchmarks/benchmark_rois.py --clock process        # processor time, for one thread on a busy machine

All have ResNet-50 and 80 classes, and get the same image and the same boxes in the place of proposals, so what is timed
is all but the suppression. What is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from detectors.pair import draw_batch
from operators.measure import interleave
from operators.report import seconds, table
from torch import Tensor

from visionlab.eval.plots import Line, line_plot
from visionlab.models.detector import build_detector

CLASSES = 80
ONE_LEVEL = {"anchor_sizes": [[32, 64, 128, 256, 512]]}
DETECTORS: dict[str, dict[str, Any]] = {
    "R-FCN": {
        "backbone": {"name": "resnet50", "output_stride": 16},
        "neck": {"name": "single_level", "channels": 1024},
        "rpn": ONE_LEVEL,
        "head": {"name": "rfcn", "map_channels": None, "pool": {"name": "ps_roi_pool", "output_size": 7}},
    },
    "Faster R-CNN, C4": {
        "backbone": {"name": "resnet50", "roi_stage": True},
        "neck": {"name": "single_level"},
        "rpn": ONE_LEVEL,
        "head": {"name": "res5", "pool": {"name": "roi_align", "output_size": 14}},
    },
    "Faster R-CNN, FPN": {"backbone": {"name": "resnet50"}},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rois", type=int, nargs="+", default=[100, 300, 1000, 2000])
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(DETECTORS), help="names of detectors, or their first words")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    parser.add_argument("--json", type=Path, default=Path("build/benchmark/rois.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = json.loads(options.json.read_text()) if options.json.exists() else {}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in DETECTORS:
        missing = [count for count in options.rois if str(count) not in kept.get(name, {})]
        if missing and name.startswith(tuple(options.only)):
            print(f"measuring {name}", flush=True)
            found = measure(name, missing, tuple(options.size), options.rounds, options.clock)
            kept[name] = dict(sorted((kept.get(name, {}) | found).items(), key=lambda item: int(item[0])))
            options.json.write_text(json.dumps(kept, indent=1))
    columns = sorted({int(count) for times in kept.values() for count in times})
    lines = [[name, *(seconds(times.get(str(count))) for count in columns)] for name, times in kept.items()]
    title = f"ms for an image of {options.size[0]} x {options.size[1]}, {options.threads} threads"
    table(["ResNet-50", *(f"{count} RoIs" for count in columns)], lines, title)
    options.json.with_suffix(".svg").write_text(draw(kept))
    return 0


def measure(name: str, counts: list[int], size: tuple[int, int], rounds: int, clock: str) -> dict[str, Any]:
    """Return the times of a detection by the number of RoIs."""
    torch.manual_seed(0)
    detector = build_detector([f"class {number}" for number in range(CLASSES)], **DETECTORS[name]).eval()
    batch = draw_batch(size, 1)

    def detect(boxes: Tensor) -> None:
        with patch.object(detector.rpn, "propose", lambda *arguments: [boxes]):
            detector.detect(batch)

    calls = {str(count): (lambda boxes=draw_boxes(count, size): detect(boxes)) for count in counts}
    return interleave(calls, "process" if clock == "process" else "cpu", 0, rounds)


def draw_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Return boxes with log-uniform sides of 16 to 400 pixels inside an image."""
    generator = torch.Generator().manual_seed(count)
    limits = torch.tensor([size[1], size[0]])
    sides = torch.minimum(16 * 25 ** torch.rand(count, 2, generator=generator), limits - 1)
    corners = torch.rand(count, 2, generator=generator) * (limits - sides)
    return torch.cat((corners, corners + sides), dim=1)


def draw(kept: dict[str, Any]) -> str:
    """Return the plot as SVG."""
    lines = []
    for name, times in kept.items():
        spread = [(time["q3"] - time["q1"]) / 2 for time in times.values()]
        lines.append(Line(name, [int(count) for count in times], [time["median"] for time in times.values()], spread))
    return str(line_plot(lines, x_label="RoIs", y_label="seconds for an image", y_min=0, markers=True))


if __name__ == "__main__":
    raise SystemExit(main())

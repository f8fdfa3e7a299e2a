"""Compare detectors: the same images, steps and seeds for all, each at the learning rate that is best for it.

    D=configs/compare/detectors
    python benchmarks/detector_family.py $D/faster_rcnn_fpn.yaml $D/*.yaml --out DIR
    python benchmarks/detector_family.py $D/rfcn.yaml $D/deformable_rfcn.yaml data.deformation=1 --out DIR

Each config is a detector, called by the file's name; all are compared with the first, which may come again among the
others. The learning rate of each is the one of the grid with the best AP on seeds that are not reported, and with
`--tune KEY=VALUE` on other images than those that are reported. A seed draws the weights, the order of images and,
where they are generated, the images. The cost of an image and of a training step is measured last, each detector in
turn with the first, on the trained weights and with one thread.

A result that is in the folder is not measured again, and several processes may fill one folder. Runs that diverged are
counted. `study.md` has the table and `study.json` all numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from operators.measure import interleave

from visionlab.command import Command
from visionlab.config import build
from visionlab.config.schema import Detect
from visionlab.data.transforms import EvaluationResize
from visionlab.eval.interval import Interval
from visionlab.eval.over_seeds import Result, both_finished, count, finished
from visionlab.eval.records import last_scores
from visionlab.files import write_text
from visionlab.models.detector import read_detector
from visionlab.resume import essential_settings
from visionlab.run import execute
from visionlab.studies.cells import Cell, CellStore, Job
from visionlab.studies.protocol import load_run
from visionlab.studies.tuning import rate_cell, tune
from visionlab.tasks.detect import DetectTask
from visionlab.train.guard import Interrupted

CPU = torch.device("cpu")
SHARED = ("data", "transform", "resize", "weights", "train", "loader", "schedule", "evaluate")
METRICS = ("AP", "AP50")
COSTS = ("image", "step")
HEAD = ["detector", "runs", "learning rate", "AP", "AP50", "AP more than {}", "image", "step", "million weights"]


def main() -> int:
    parser = Command(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="+", metavar="CONFIG | KEY=VALUE", help="detectors, and settings for all of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of results")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 5e-3, 1e-2], help="the grid of learning rates")
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[100], help="choose the rate of each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="are reported")
    parser.add_argument(
        "--tune", action="append", default=[], metavar="KEY=VALUE", help="setting of the runs that choose rates only"
    )
    parser.add_argument("--rounds", type=int, default=9, help="times that each cost is measured")
    options = parser.parse_args(sys.argv[1:])
    configs = [Path(word) for word in options.words if "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    torch.set_num_threads(1)
    try:
        study = Study(configs, overrides, options.tune, options.tuning_seeds, options.out)
        tuned = tune(
            study.cells,
            study.job,
            list(study.configs),
            rates=options.rates,
            tuning_seeds=options.tuning_seeds,
            seeds=options.seeds,
        )
        first = {arm: rate_cell(arm, rate, options.seeds[0]) for arm, rate in tuned.rates.items()}
        costs = study.costs(first, options.rounds)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal
    lines = table(tuned.reported, tuned.rates, costs)
    numbers = {"seeds": options.seeds, "tuning": tuned.to_json(), "learning_rate": tuned.rates}
    numbers |= {"cells": tuned.reported, "cost": costs}
    write_text(options.out / "study.json", json.dumps(numbers, indent=1))
    write_text(options.out / "study.md", "\n".join(lines) + "\n")
    print(*lines, sep="\n")
    return 0


class Study:
    """The runs of a comparison: how each is trained, and what it costs."""

    def __init__(
        self,
        configs: Sequence[Path],
        overrides: Sequence[str],
        tune: Sequence[str],
        tuning_seeds: Sequence[int],
        out: Path,
    ) -> None:
        self.configs = {path.stem: path for path in configs}
        if len(self.configs) < max(len({path.resolve() for path in configs}), 1):
            raise ValueError(f"expected config files of different names, got {', '.join(map(str, configs)) or 'none'}")
        self.overrides, self.tune, self.tuning_seeds, self.out = overrides, tune, tuning_seeds, out
        runs = {arm: load_run(path, "detect", overrides) for arm, path in self.configs.items()}
        _check_shared(runs)
        self.generated = all(run.data.name == "synthetic" for run in runs.values())
        protocol = {f"detectors.{arm}": essential_settings(run) for arm, run in runs.items()}
        self.cells = CellStore(out / "cells", protocol | {"tune": list(tune)})
        (out / "detectors").mkdir(exist_ok=True)

    def run(self, arm: str, seed: int, changes: Sequence[str]) -> Detect:
        """Return the run of a detector with a seed."""
        settings = [*self.overrides, *(self.tune if seed in self.tuning_seeds else ()), f"seed={seed}", *changes]
        if self.generated:
            settings += [f"data.seed={seed}", f"data.root={self.out / 'data' / f'seed{seed}'}"]
        return load_run(self.configs[arm], "detect", settings)

    def job(self, arm: str, rate: float, seed: int) -> Job:
        """Return how AP and AP50 of a detector are found with a learning rate and a seed; its weights are kept."""
        cell = rate_cell(arm, rate, seed)
        folder = self.out / "runs" / str(cell)
        run = self.run(arm, seed, [f"optimizer.lr={rate}", f"out={folder}"])

        def work() -> Result:
            execute(run)
            (folder / "detector.safetensors").replace(self._weights(cell))
            return last_scores(folder)

        return Job(cell, work, scratch=folder)

    def costs(self, cells: Mapping[str, Cell], rounds: int) -> dict[str, Result]:
        """Return for each detector, of which a cell is given, the times of an image and of a step, and the first's."""
        [reference, *_] = cells

        def job(arm: str) -> Job:
            def work() -> Result:
                calls = {name: self._calls(name, cells[name]) for name in {reference, arm}}
                times = {kind: interleave({n: c[kind] for n, c in calls.items()}, "cpu", 0, rounds) for kind in COSTS}
                weights = sum(weight.numel() for weight in read_detector(self._weights(cells[arm])).parameters())
                found = {kind: {"own": each[arm], "reference": each[reference]} for kind, each in times.items()}
                return found | {"weights": weights}

            return Job(Cell(f"cost-{arm}", cells[arm].seed), work)

        jobs = {arm: job(arm) for arm, cell in cells.items() if finished([self.cells.read(cell)])}
        if reference not in jobs:
            return {}
        results = self.cells.fill(list(jobs.values()))
        return {arm: results[job.cell] for arm, job in jobs.items()}

    def _calls(self, arm: str, cell: Cell) -> dict[str, Callable[[], Any]]:
        """Return what is timed of a trained detector: a batch of validation images, and a step that changes nothing."""
        run = self.run(arm, cell.seed, ["optimizer.lr=1e-12", f"out={self.out / 'runs' / f'cost-{arm}'}"])
        data = build.labelled_data(run, Path(run.out))
        batch = next(build.labelled_loader(run, data, CPU)[0].batches(0))
        batch = batch.to(CPU, channels_last=run.train.channels_last)
        images = next(iter(build.validation_loader(run, data, EvaluationResize(**build.evaluation_size(run)), CPU)))
        detector, learner = (read_detector(self._weights(cell)) for _ in range(2))
        task = DetectTask(learner).train()
        for module in (detector, task):
            module.to(memory_format=torch.channels_last if run.train.channels_last else torch.contiguous_format)
        optimizer = run.optimizer.build(task)

        def step() -> None:
            optimizer.zero_grad()
            torch.stack(list(task(batch).values())).sum().backward()
            optimizer.step()

        return {"image": lambda: detector.detect(images), "step": step}

    def _weights(self, cell: Cell) -> Path:
        return self.out / "detectors" / f"{cell}.safetensors"


def _check_shared(runs: Mapping[str, Detect]) -> None:
    """Refuse detectors that differ in anything but their parts and their optimizers."""
    first, *others = runs
    for name in others:
        for key in SHARED:
            ours, theirs = (getattr(runs[each], key) for each in (first, name))
            if ours != theirs:
                raise ValueError(
                    f"{key}: expected the same for all detectors, got {ours} in {first}, {theirs} in {name}"
                )


def table(
    reported: Mapping[str, Sequence[Result]], rates: Mapping[str, float], costs: Mapping[str, Result]
) -> list[str]:
    """Return the lines of the table: means with Student-t 95 % intervals in points, times as multiples of the first."""
    [reference, *_] = reported
    rows = [[title.format(f"`{reference}`") for title in HEAD], ["---", *["--:"] * (len(HEAD) - 1)]]
    for arm, cells in reported.items():
        scores = [_interval([cell[metric] for cell in finished(cells)]) for metric in METRICS]
        more = [own["AP"] - other["AP"] for own, other in both_finished(cells, reported[reference])]
        cost = costs.get(arm)
        times = (
            [f"{cost[kind]['own']['median'] / cost[kind]['reference']['median']:.2f}x" for kind in COSTS]
            if cost
            else ["–"] * 2
        )
        size = f"{cost['weights'] / 1e6:.2f}" if cost else "–"
        difference = "–" if arm == reference else _interval(more)
        rows.append([f"`{arm}`", count(cells), f"{rates[arm]:g}", *scores, difference, *times, size])
    return [" | ".join(["", *row, ""]).strip() for row in rows]


def _interval(values: Sequence[float]) -> str:
    return Interval.of(values).text() if values else "–"


if __name__ == "__main__":
    raise SystemExit(main())

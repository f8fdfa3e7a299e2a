"""Does pretraining help a detector that has few labels? Two arms, each at its best learning rate, over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from visionlab.config.load import load
from visionlab.eval.interval import Interval
from visionlab.eval.over_seeds import Result, both_finished, count, finished
from visionlab.eval.records import last_scores
from visionlab.files import write_text
from visionlab.resume import essential_settings
from visionlab.run import execute
from visionlab.studies.cells import Cell, CellStore, Job
from visionlab.studies.protocol import check_metrics, load_run
from visionlab.studies.tuning import rate_cell, tune

ARMS = ("pretrained", "random")
METRICS = ("AP", "AP50")


def low_label_study(
    pretrain: Path,
    detect: Path,
    out: Path,
    *,
    rates: Sequence[float] = (1e-3, 2e-3, 4e-3, 8e-3),
    tuning_seeds: Sequence[int] = (100, 101),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> Path:
    """Compare pretrained and random initialization, each at the learning rate that is best for it.

    Both arms do the same steps on the same images. Each arm's rate is the one of the grid with the highest mean AP on
    the tuning seeds, which are not reported; a rate at which a run diverged is not chosen. A seed draws the dataset,
    the initial weights and the order of images. A run that has its result in ``out/cells`` is not done again, and
    several processes may work on one folder. Reported runs that diverged are counted beside the means of the others.

    Args:
        pretrain: config of the pretraining.
        detect: config of the detector.
        out: the folder of results; runs are removed once their result is written.
        rates: the grid of learning rates of the detector.
        tuning_seeds: seeds that choose the rate of each arm.
        seeds: seeds that are reported; none of them may be a tuning seed.

    Returns:
        The file with all results.

    Raises:
        ValueError: a seed both tunes and is reported, ``out`` holds results of other configs, or an arm diverges at
            every rate.
    """
    study = _Study(pretrain, detect, out)
    tuned = tune(study.cells, study.job, ARMS, rates=rates, tuning_seeds=tuning_seeds, seeds=seeds)
    best, reported = tuned.rates, tuned.reported
    gains = [
        {metric: pretrained[metric] - random[metric] for metric in METRICS}
        for pretrained, random in both_finished(*(reported[arm] for arm in ARMS))
    ]
    result: dict = {
        "seeds": list(seeds),
        "tuning": tuned.to_json(),
        "learning_rate": best,
        "cells": reported,
    }
    table = Table("", "runs", *METRICS, title=f"mean and Student-t 95 % interval over {len(seeds)} seeds, in points")
    rows = {f"{arm} (learning rate {best[arm]:g})": (arm, reported[arm], count(reported[arm])) for arm in ARMS}
    rows["gain, paired by seed"] = ("gain", gains, str(len(gains)))
    for title, (name, cells, runs) in rows.items():
        values = {metric: [cell[metric] for cell in finished(cells)] for metric in METRICS}
        intervals = {metric: Interval.of(each) if each else None for metric, each in values.items()}
        result[name] = {metric: each and each.to_json() for metric, each in intervals.items()} | {"runs": runs}
        table.add_row(title, runs, *(each.text() if each else "–" for each in intervals.values()))
    Console().print(table)
    path = out / "study.json"
    write_text(path, json.dumps(result, indent=1))
    return path


class _Study:
    """The runs of a study: which there are, and how each is done."""

    def __init__(self, pretrain: Path, detect: Path, out: Path) -> None:
        self.pretrain, self.detect, self.out = pretrain, detect, out
        detector = load_run(detect, "detect")
        check_metrics(detect, detector)
        protocol = {"pretrain": essential_settings(load(pretrain)), "detect": essential_settings(detector)}
        self.cells = CellStore(out / "cells", protocol)

    def job(self, arm: str, rate: float, seed: int) -> Job:
        """Return how AP and AP50 of an arm are found with a learning rate and a seed."""
        needs: tuple[Job, ...] = ()
        changes = ["weights=null"]
        if arm == "pretrained":
            backbone = self.out / "backbones" / f"seed{seed}.safetensors"
            needs, changes = (self._pretraining(seed, backbone),), [f"weights={backbone}"]
        cell = rate_cell(arm, rate, seed)
        folder = self.out / "runs" / str(cell)
        run = load(self.detect, [*self._seeded(seed), f"optimizer.lr={rate}", f"out={folder}", *changes])
        return Job(cell, lambda: last_scores(execute(run)), needs, folder)

    def _pretraining(self, seed: int, backbone: Path) -> Job:
        cell = Cell("pretrain", seed)
        folder = self.out / "runs" / str(cell)
        run = load(self.pretrain, [*self._seeded(seed), f"out={folder}"])

        def work() -> Result:
            if not backbone.exists():
                backbone.parent.mkdir(exist_ok=True)
                (execute(run) / "backbone.safetensors").replace(backbone)
            return {"backbone": str(backbone.relative_to(self.out))}

        return Job(cell, work, scratch=folder)

    def _seeded(self, seed: int) -> list[str]:
        return [f"seed={seed}", f"data.seed={seed}", f"data.root={self.out / 'data' / f'seed{seed}'}"]

"""Many runs under one protocol: does pretraining help a detector that has few labels?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from visionlab.config.load import load
from visionlab.eval.interval import Interval
from visionlab.eval.records import last_scores
from visionlab.resume import fingerprint
from visionlab.run import execute

ARMS = ("pretrained", "random")
METRICS = ("AP", "AP50")


def low_label_study(
    pretrain: Path,
    detect: Path,
    out: Path,
    *,
    rates: Sequence[float],
    tuning_seeds: Sequence[int],
    seeds: Sequence[int],
) -> Path:
    """Compare pretrained and random initialization, each at the learning rate that is best for it.

    Both arms do the same steps on the same images. Each arm's rate is the one of the grid with the highest mean AP on
    the tuning seeds, which are not reported. A seed draws the dataset, the initial weights and the order of images. A
    run that has its result in ``out/cells`` is not done again. One whose loss diverges counts as having found nothing.

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
        ValueError: a seed both tunes and is reported, or ``out`` holds results of other configs.
    """
    if set(tuning_seeds) & set(seeds):
        raise ValueError(f"expected tuning seeds that are not reported, got {sorted(set(tuning_seeds) & set(seeds))}")
    cells = _Cells(pretrain, detect, out)
    tuning = {
        arm: {rate: [cells.scores(arm, rate, seed)["AP"] for seed in tuning_seeds] for rate in rates} for arm in ARMS
    }
    best = {arm: max(rates, key=lambda rate: np.mean(tuning[arm][rate])) for arm in ARMS}
    reported = {arm: [cells.scores(arm, best[arm], seed) for seed in seeds] for arm in ARMS}

    result: dict = {"seeds": list(seeds), "tuning": tuning, "learning_rate": best, "cells": reported}
    table = Table("", *METRICS, title=f"mean and Student-t 95 % interval over {len(seeds)} seeds, in points")
    for arm in ARMS:
        intervals = [Interval.of([cell[metric] for cell in reported[arm]]) for metric in METRICS]
        result[arm] = {metric: asdict(interval) for metric, interval in zip(METRICS, intervals, strict=True)}
        table.add_row(f"{arm} (learning rate {best[arm]:g})", *map(str, intervals))
    gains = [
        Interval.of([a[metric] - b[metric] for a, b in zip(reported["pretrained"], reported["random"], strict=True)])
        for metric in METRICS
    ]
    result["gain"] = {metric: asdict(interval) for metric, interval in zip(METRICS, gains, strict=True)}
    table.add_row("gain, paired by seed", *map(str, gains))
    Console().print(table)
    path = out / "study.json"
    path.write_text(json.dumps(result, indent=1))
    return path


class _Cells:
    """The runs of a study, each done once: (arm, learning rate, seed) -> scores."""

    def __init__(self, pretrain: Path, detect: Path, out: Path) -> None:
        self.pretrain, self.detect, self.out = pretrain, detect, out
        (out / "cells").mkdir(parents=True, exist_ok=True)
        protocol = {"pretrain": fingerprint(load(pretrain)), "detect": fingerprint(load(detect))}
        path = out / "cells" / "protocol.json"
        if path.exists() and json.loads(path.read_text()) != protocol:
            raise ValueError(
                f"{out} holds results of other configs than {pretrain} and {detect}; choose another folder"
            )
        path.write_text(json.dumps(protocol))

    def scores(self, arm: str, rate: float, seed: int) -> dict[str, float]:
        name = f"{arm}-lr{rate:g}-seed{seed}"
        cell = self.out / "cells" / f"{name}.json"
        if not cell.exists():
            weights = self._backbone(seed) if arm == "pretrained" else None
            overrides = [*self._seeded(seed), f"optimizer.lr={rate}", f"out={self.out / 'runs' / name}"]
            overrides += [f"weights={weights}"] if weights else ["weights=null"]
            run = load(self.detect, overrides)
            try:
                scores = last_scores(execute(run))
            except FloatingPointError as error:
                Console().print(f"{name}: {error}", style="yellow", markup=False, soft_wrap=True)
                scores = dict.fromkeys(METRICS, 0.0)
            partial = cell.with_suffix(".partial")
            partial.write_text(json.dumps(scores))
            partial.rename(cell)
            shutil.rmtree(run.out)
        return json.loads(cell.read_text())

    def _backbone(self, seed: int) -> Path:
        kept = self.out / "backbones" / f"seed{seed}.safetensors"
        if not kept.exists():
            out = self.out / "runs" / f"pretrain-seed{seed}"
            folder = execute(load(self.pretrain, [*self._seeded(seed), f"out={out}"]))
            kept.parent.mkdir(exist_ok=True)
            (folder / "backbone.safetensors").rename(kept)
            shutil.rmtree(folder)
        return kept

    def _seeded(self, seed: int) -> list[str]:
        return [f"seed={seed}", f"data.seed={seed}", f"data.root={self.out / 'data' / f'seed{seed}'}"]

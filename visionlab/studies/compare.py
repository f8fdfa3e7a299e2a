"""A comparison of methods under one protocol: the same encoder, images, steps and measures for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from visionlab import distributed
from visionlab.config import build
from visionlab.config.schema import Pretrain
from visionlab.data.class_folder import ClassFolder
from visionlab.data.samples import ViewSamples
from visionlab.data.transforms import EvaluationResize
from visionlab.data.views import Views
from visionlab.eval.comparison import write_comparison
from visionlab.eval.over_seeds import Result
from visionlab.eval.records import last_scores, read_run
from visionlab.eval.roi_probe import roi_probe
from visionlab.models.weights import read_backbone, save_backbone
from visionlab.resume import checkpoint_fingerprint, essential_settings
from visionlab.run import execute
from visionlab.run_folder import make_folders
from visionlab.seeding import derive_seed
from visionlab.studies.cells import Cell, CellStore, Job
from visionlab.studies.encoder_probes import box_features, encoder_of, probe_folder, random_backbone
from visionlab.studies.protocol import (
    GIVEN_WEIGHTS,
    base_run,
    check_shared,
    count_images,
    detector_run,
    load_run,
    norm_of,
)
from visionlab.tasks.classify import ClassifyTask
from visionlab.train.loop import train
from visionlab.train.memory import MemoryRise

REFERENCE_METHODS = ("random", "supervised")


@dataclass(frozen=True)
class Measures:
    """What is measured of every encoder, and on what.

    Args:
        train: a folder of a folder of images for each class, for probes and for supervised training.
        test: another, with the same classes.
        image_size: side of the middle of an image that probes look at, in pixels.
        grid: parts along each side of a level's map whose means are the features.
        neighbors: how many vote.
        limit: images of each folder, a fixed choice; all by default.
        roi: config of a detector on whose boxes, at whose evaluation size, levels are probed; none by default.
        detect: config of a detector that is trained from every encoder, on the encoder's own layers; none by default.
    """

    train: Path
    test: Path
    image_size: int = 64
    grid: int = 2
    neighbors: int = 20
    limit: int | None = None
    roi: Path | None = None
    detect: Path | None = None

    def identity(self) -> dict[str, Any]:
        """Return what must not change while cells are added."""
        paths = {"roi": self.roi, "detect": self.detect}
        runs = {name: path and load_run(path, "detect", [GIVEN_WEIGHTS]) for name, path in paths.items()}
        configs = {name: run and essential_settings(run) for name, run in runs.items()}
        return {key: str(value) for key, value in asdict(self).items() if key not in configs} | configs


def compare(
    configs: Sequence[Path],
    out: Path,
    measures: Measures,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    only: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train every method with every seed, measure all encoders alike, and write one table.

    A cell, that is a method with a seed, writes one file into ``out/cells`` and is not done again; several processes
    may work on one folder. Random weights and supervised training on the probe's training images are always among the
    methods, with the encoder that most configs have and the settings of the first of those.

    Args:
        configs: one of a pretraining run for each method, which is called by the file's name.
        out: the folder of results; runs are removed once their cell is written, backbones stay.
        measures: what is measured.
        seeds: each draws weights, order and views.
        only: the methods whose cells are done now; all by default. The table shows the others' as they stand.
        overrides: ``key=value`` for every config of a method.

    Returns:
        The page with the table and the plots; next to it the same as ``.json`` and ``.md``.

    Raises:
        ValueError: the configs differ in more than the method, or ``out`` holds results of others.
    """
    runs = {path.stem: load_run(path, "pretrain", overrides) for path in configs}
    _check_names(configs, runs, only)
    check_shared(runs)
    if measures.detect is not None:
        for run in runs.values():  # refuse a detector that cannot be built before anything is trained
            detector_run(measures.detect, run.backbone.arguments())
    study = _Comparison(runs, out, measures)
    methods = [*REFERENCE_METHODS, *runs]
    chosen = methods if only is None else [name for name in methods if name in only]
    study.cells.fill([study.job(Cell(method, seed)) for seed in seeds for method in chosen])
    results = {method: [study.cells.read(Cell(method, seed)) for seed in seeds] for method in methods}
    description = _description(runs, measures, results["supervised"])
    page = write_comparison(results, out / "compare.html", seeds=seeds, description=description)
    Console().print(page.with_suffix(".md").read_text(encoding="utf-8"), markup=False, soft_wrap=True, highlight=False)
    Console().print(f"report: {page}", soft_wrap=True)
    return page


class _Comparison:
    """The runs of a comparison: how each is trained and measured."""

    def __init__(self, runs: dict[str, Pretrain], out: Path, measures: Measures) -> None:
        self.runs, self.out, self.measures, self.base = runs, out, measures, base_run(runs)
        for name in ("backbones", "runs"):
            (out / name).mkdir(parents=True, exist_ok=True)
        methods = {name: run.model_copy(update={"seed": 0}) for name, run in {**runs, "supervised": self.base}.items()}
        protocol = {f"methods.{name}": essential_settings(run) for name, run in methods.items()}
        protocol["measures"] = measures.identity()
        self.cells = CellStore(out / "cells", protocol)

    def job(self, cell: Cell) -> Job:
        """Return how a method is trained with a seed, and measured."""
        folder = self.out / "runs" / str(cell)

        def work() -> Result:
            weights = self.out / "backbones" / f"{cell}.safetensors"
            return self._train(cell, folder, weights) | self._measure(weights, folder, cell.seed)

        return Job(cell, work, scratch=folder)

    def _train(self, cell: Cell, folder: Path, weights: Path) -> Result:
        """Leave the encoder in a file, and return what its training cost."""
        run = self.runs.get(cell.arm, self.base).model_copy(update={"seed": cell.seed, "out": str(folder)})
        if cell.arm == "random":
            backbone = random_backbone(run.backbone.arguments(), cell.seed)
            save_backbone(backbone, weights, provenance={"method": cell.arm, "steps": 0, "images": 0})
            return {}
        device = distributed.choose_device(run.device)
        memory, found = MemoryRise(device), {}
        if cell.arm == "supervised":
            found["images"] = self._train_supervised(run, folder, device)
        else:
            execute(run)
        (folder / "backbone.safetensors").replace(weights)
        record = read_run(folder)
        speed = record.series("images_per_second")[1]
        cost = {"seconds": record.seconds, "images_per_second": median(speed), "megabytes": memory.megabytes()}
        return {"cost": cost, "warnings": record.warnings, **found}

    def _train_supervised(self, run: Pretrain, folder: Path, device: torch.device) -> dict[str, int]:
        """Leave the encoder in a run folder, and return how many images it and the methods learn from."""
        make_folders(folder)
        data = ClassFolder(root=str(self.measures.train), limit=self.measures.limit)
        torch.manual_seed(derive_seed(run.seed, "weights"))
        backbone = run.backbone.build()
        task = ClassifyTask(backbone, data.labels, len(data.classes))
        views = Views.crops(image_size=self.measures.image_size, crop_scale=(0.3, 1.0))
        loader = run.loader.build(ViewSamples(data, views), run.seed, device.type == "cuda")
        optimizer, schedule, log, checkpoints = build.training(run, task, folder, checkpoint_fingerprint(run))
        settings = run.train.arguments()
        train(task, loader.batches, optimizer, schedule, log, checkpoints, device, seed=run.seed, **settings)
        provenance = {"method": "supervised", "steps": run.train.steps, "images": len(data)}
        save_backbone(backbone, folder / "backbone.safetensors", provenance=provenance)
        return count_images(run, data)

    def _measure(self, weights: Path, folder: Path, seed: int) -> Result:
        measures = self.measures
        device = distributed.choose_device(self.base.device)
        backbone = read_backbone(weights)
        labelled = ClassFolder(root=str(measures.train), limit=measures.limit)
        held_out = ClassFolder(root=str(measures.test), limit=measures.limit, classes=labelled.classes)
        encode = encoder_of(backbone.to(device), measures.grid)
        settings: dict[str, Any] = {"image_size": measures.image_size, "neighbors": measures.neighbors}
        [scores] = probe_folder(encode, labelled, held_out, device=device, **settings)
        found: dict[str, Any] = {"probe": scores}
        if measures.roi is not None:
            run = load_run(measures.roi, "detect", [GIVEN_WEIGHTS])
            boxes = build.labelled_data(run, self.out / "runs")
            if boxes.val is None:
                raise ValueError(f"{measures.roi}: expected images to evaluate on in the section data, got none")
            resize = EvaluationResize(**build.evaluation_size(run))
            rois = [box_features(backbone, data, resize, device) for data in (boxes.train, boxes.val)]
            found["roi"] = roi_probe(rois[0], rois[1])
        if measures.detect is not None:
            changes = [f"seed={seed}", f"weights={weights}", f"out={folder / 'detect'}"]
            found["detection"] = last_scores(execute(detector_run(measures.detect, backbone.settings, changes)))
        return found


def _check_names(configs: Sequence[Path], runs: dict[str, Pretrain], only: Sequence[str] | None) -> None:
    if not runs or len(runs) < len(configs) or set(runs) & set(REFERENCE_METHODS):
        names = ", ".join(path.stem for path in configs)
        raise ValueError(
            f"expected config files of different names, none of them {' or '.join(REFERENCE_METHODS)}, got {names}"
        )
    for name in only or ():
        if name not in {*runs, *REFERENCE_METHODS}:
            raise ValueError(f"only: expected some of {', '.join([*REFERENCE_METHODS, *runs])}, got {name}")


def _description(
    runs: dict[str, Pretrain], measures: Measures, supervised: Sequence[dict[str, Any] | None]
) -> list[str]:
    run = base_run(runs)
    norms = {name: norm_of(each) for name, each in runs.items()}
    differing = [f"{name} {norm}" for name, norm in norms.items() if norm != norm_of(run)]
    lines = [
        f"{run.backbone.name}, {run.train.steps:,} steps of {run.loader.batch_size} images each. Probes look at images "
        f"of {measures.image_size} pixels; k-NN with {measures.neighbors} neighbors; maps are averaged over a grid of "
        f"{measures.grid} x {measures.grid}.",
    ]
    if differing:
        lines.append(f"norm: {norm_of(run)}, but {', '.join(differing)}.")
    images = next((cell["images"] for cell in supervised if cell and "images" in cell), None)
    if images and not images["pretext"] == images["supervised"] == images["both"]:
        lines.append(
            f"supervised learned from other images than the methods: of its {images['supervised']:,} files, "
            f"{images['both']:,} are among the methods' {images['pretext']:,}."
        )
    return lines

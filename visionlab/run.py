"""The life of one run: a checked config in, a run folder with weights, numbers and a report out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from visionlab import distributed
from visionlab.config import build
from visionlab.config.schema import Detect, Pretrain
from visionlab.data.identity import common_folder, identify
from visionlab.data.labelled import LabelledData
from visionlab.data.problems import Problem, digest
from visionlab.data.transforms import EvaluationResize
from visionlab.eval.detection import Metrics, headline
from visionlab.eval.drawing import draw_views, save_jpeg
from visionlab.eval.report import write_report
from visionlab.files import write_text
from visionlab.models.backbone import Backbone
from visionlab.models.detector import read_detector, save_detector
from visionlab.models.detector_transfer import load_detector_weights
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.models.weights import load_weights, save_backbone
from visionlab.resume import check_settings, checkpoint_fingerprint
from visionlab.run_folder import make_folders, open_folder
from visionlab.seeding import derive_seed
from visionlab.tasks.detect import DetectTask, detect_all, draw_sampling
from visionlab.tasks.pretrain import PretrainTask
from visionlab.text import printable
from visionlab.train.guard import Interrupted
from visionlab.train.loop import train

console = Console()


def execute_all(runs: Sequence[Pretrain | Detect]) -> int | None:
    """Run several configs in order, in the processes that torchrun started if it did.

    Returns:
        None when all are done, or 128 + the number of the signal that stopped one.
    """
    status = None
    for run in runs:
        try:
            execute(run)
        except Interrupted as stop:
            _say(str(stop))
            status = 128 + stop.signal
            break
    distributed.stop()
    return status


def execute(run: Pretrain | Detect) -> Path:
    """Do one run, or what is left of it, and return its folder."""
    device = _start(run)
    folder = Path(run.out)
    check_settings(run, folder)
    _say(f"{run.task} in {folder} on {device}", style="bold")
    if isinstance(run, Pretrain):
        _pretrain(run, folder, device)
    else:
        _detect(run, folder, device)
    if distributed.is_main():
        _say(f"report: {write_report(folder)}")
    return folder


def _pretrain(run: Pretrain, folder: Path, device: torch.device) -> None:
    # ---------------------------------------------------------------------------------------------------- build
    torch.manual_seed(derive_seed(run.seed, "weights"))
    backbone = run.backbone.build()
    _load(run, backbone)
    pretext = run.pretext.build(backbone)
    data = run.data.build()
    loader = build.unlabelled_loader(run, data, pretext.views, device)
    open_folder(run, device, {"train": (common_folder(data.files), identify(data))})
    for note in getattr(data, "notes", ()):  # which a source of one's own need not have
        _say(f"data: {note}")
    _tell("data", data.problems)
    pretext.prepare(loader.sampler.length, run.train.steps)
    task = PretrainTask(pretext)
    if distributed.is_main():
        first = next(iter(loader.batches(0)))
        save_jpeg(draw_views(pretext.pictures(first)), folder / "pictures" / "views.jpg")

    # ---------------------------------------------------------------------------------------------------- train
    optimizer, schedule, log, checkpoints = build.training(run, task, folder, checkpoint_fingerprint(run))
    train(task, loader.batches, optimizer, schedule, log, checkpoints, device, seed=run.seed, **run.train.arguments())

    # ----------------------------------------------------------------------------------------------------- keep
    if distributed.is_main():
        provenance = {"method": run.pretext.name, "steps": run.train.steps, "images": loader.sampler.length}
        save_backbone(backbone, folder / "backbone.safetensors", provenance=provenance)
        _say(f"backbone: {folder / 'backbone.safetensors'}")


def _detect(run: Detect, folder: Path, device: torch.device) -> None:
    # ---------------------------------------------------------------------------------------------------- build
    torch.manual_seed(derive_seed(run.seed, "weights"))
    data = build.labelled_data(run, folder)
    parts = {"train": data.train, "val": data.val}
    open_folder(run, device, {name: (part.source, identify(part)) for name, part in parts.items() if part})
    detector = build.detector(run, data.train.classes)
    detector.provenance = {"resize": build.evaluation_size(run), "category_ids": data.train.category_ids}
    if run.detector is not None:
        _say(f"detector: {load_detector_weights(detector, run.detector, min_matched=run.min_matched)}")
    _load(run, detector.backbone)
    loader, problems = build.labelled_loader(run, data, device)
    for note in data.notes:
        _say(f"data: {note}")
    _tell("training data", problems)
    if data.val:
        _tell("validation data", data.val.problems)
    task = DetectTask(detector)
    best_metric = headline(run.evaluate.metrics)

    def evaluate(step: int) -> dict[str, float]:
        summary = _measure(run, detector, data, folder, step, device).summary()
        # Without any object to find there is no AP, but something must be best.
        return {best_metric: 0.0} | {name: value for name, value in summary.items() if value is not None}

    def save(step: int) -> None:
        save_detector(detector, folder / "detector.safetensors", provenance={**detector.provenance, "steps": step})

    # ---------------------------------------------------------------------------------------------------- train
    optimizer, schedule, log, checkpoints = build.training(run, task, folder, checkpoint_fingerprint(run))
    train(
        task,
        loader.batches,
        optimizer,
        schedule,
        log,
        checkpoints,
        device,
        evaluate=evaluate if data.val else None,
        best_metric=best_metric,
        save_best=save if data.val else None,
        seed=run.seed,
        **run.train.arguments(),
    )

    # ----------------------------------------------------------------------------------------------------- keep
    if distributed.is_main():
        if not data.val:
            save(run.train.steps)
        _say(f"detector: {folder / 'detector.safetensors'}")


def _measure(
    run: Detect, detector: TwoStageDetector, data: LabelledData, folder: Path, step: int, device: torch.device
) -> Metrics:
    """Evaluate a detector, and write its metrics, results and pictures."""
    evaluator = build.evaluator(run, data)
    resizes = EvaluationResize(**detector.provenance["resize"]).at(evaluator.views.sizes)
    batches = zip(*(build.validation_loader(run, data, resize, device) for resize in resizes), strict=True)
    pictures = detect_all(detector, batches, evaluator, device, flip=evaluator.views.flip)
    results = evaluator.results()
    metrics = evaluator.metrics(results)
    if distributed.is_main():
        name = f"step_{step:08d}"
        write_text(folder / "eval" / f"{name}_results.json", json.dumps(results))
        write_text(folder / "eval" / f"{name}.json", json.dumps({"step": step, **metrics.to_json()}, indent=1))
        for number, picture in enumerate(pictures):
            save_jpeg(picture, folder / "pictures" / f"val_{number:02d}.jpg")
        for earlier in (folder / "pictures").glob("offsets_*.jpg"):  # their number depends on what is found
            earlier.unlink()
        loader = build.validation_loader(run, data, resizes[0], device)
        for number, picture in enumerate(draw_sampling(detector, loader, device)):
            save_jpeg(picture, folder / "pictures" / f"offsets_{number:02d}.jpg")
    return metrics


def evaluate(run: Pretrain | Detect) -> Metrics:
    """Measure a detector on the validation images of a config; write into the run folder.

    Args:
        run: its ``detector``, or else its ``weights``, is the detector's file.
    """
    if not isinstance(run, Detect):
        raise ValueError(f"evaluate: expected a config with task detect, got {run.task}")
    file = run.detector or run.weights
    if file is None:
        raise ValueError("evaluate: expected detector=FILE, the detector.safetensors to measure")
    device = _start(run)
    folder = Path(run.out) / "evaluate"
    make_folders(folder)
    detector = read_detector(file).to(device)
    if run.resize is not None or "resize" not in detector.provenance:
        detector.provenance["resize"] = build.evaluation_size(run)
    data = build.labelled_data(run, folder, detector.classes)
    if data.val is None:
        raise ValueError("evaluate: expected validation images in the section data, got none")
    _tell("validation data", data.val.problems)
    metrics = _measure(run, detector, data, folder, 0, device)
    if distributed.is_main():
        table = Table("metric", escape(file))
        per_class = {f"AP of {escape(name)}": value for name, value in metrics.per_class.items()}
        for name, value in {**metrics.summary(), **per_class}.items():
            table.add_row(name, "nothing to find" if value is None else f"{100 * value:.2f}")
        console.print(table)
        _say(f"written: {folder / 'eval'}")
    distributed.stop()
    return metrics


def _start(run: Pretrain | Detect) -> torch.device:
    device = distributed.choose_device(run.device)
    distributed.start(device)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(run.deterministic)
    return device


def _load(run: Pretrain | Detect, backbone: Backbone) -> None:
    if run.weights is not None:
        report = load_weights(backbone, run.weights, min_matched=run.min_matched)
        _say(f"weights: {report}")


def _tell(what: str, problems: Sequence[Problem]) -> None:
    """Name what was wrong with the data, a line for each kind."""
    lines = digest(problems)
    for line in lines:
        _say(f"{what}: {line}", style="yellow")
    if len(lines) < len(problems):
        _say(f"{what}: `visionlab check-data` lists all {len(problems)}", style="yellow")


def _say(text: str, style: str = "") -> None:
    if distributed.is_main():
        console.print(printable(text, keep="\n"), style=style, markup=False, soft_wrap=True, highlight=False)

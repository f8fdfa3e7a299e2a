"""Sections in, live objects out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from visionlab.config.schema import Common, Detect, Pretrain
from visionlab.data.labelled import LabelledData
from visionlab.data.loader import EvalLoader, TrainLoader
from visionlab.data.problems import Problem
from visionlab.data.samples import DetectionSamples, ViewSamples
from visionlab.data.transforms import EvaluationResize
from visionlab.data.views import ViewsLike
from visionlab.eval.detection import DetectionEvaluator
from visionlab.models.detector import build_detector
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.train.checkpoint import Checkpoints
from visionlab.train.log import Log
from visionlab.train.schedule import Schedule
from visionlab.train.task import Task


def training(run: Common, task: Task, folder: Path, fingerprint: str) -> tuple[Optimizer, Schedule, Log, Checkpoints]:
    """Build what the loop needs besides a task and batches.

    Args:
        run: of any kind.
        task: what learns.
        folder: the run folder.
        fingerprint: a text that changes with every setting that changes the run.
    """
    steps = run.train.steps
    return (
        run.optimizer.build(task),
        run.schedule.build(steps),
        run.log.build(folder, steps),
        run.checkpoints.build(folder / "checkpoints", fingerprint),
    )


def unlabelled_loader(run: Pretrain, data: Any, views: ViewsLike, device: torch.device) -> TrainLoader:
    """Return the batches of views to pretrain on, of the images that ``run.data`` has built."""
    return run.loader.build(ViewSamples(data, views), run.seed, device.type == "cuda")


def labelled_data(run: Detect, folder: Path, classes: list[str] | None = None) -> LabelledData:
    """Read the labelled images of a detector's run.

    Args:
        run: of a detector.
        folder: the run folder; a split is written there.
        classes: the names of a trained detector's labels, which the data must have and take over; by default those of
            the config.

    Raises:
        ValueError: the data has other classes, or no images to evaluate on where settings ask for an evaluation.
    """
    section = run.data
    if classes is not None and "classes" in type(section).model_fields:
        section = section.model_copy(update={"classes": classes})
    data = section.build(folder)
    if data.val is None:
        for key, what in run.without_validation():
            raise ValueError(f"{key}: {what}")
    if classes is not None and data.train.classes != classes:
        raise ValueError(f"expected data with the classes of the detector, {classes}, got {data.train.classes}")
    return data


def labelled_loader(run: Detect, data: LabelledData, device: torch.device) -> tuple[TrainLoader, list[Problem]]:
    """Return the batches to train a detector on, and what is wrong with the images and labels."""
    samples = DetectionSamples(data.train, run.transform.build())
    return run.loader.build(samples, run.seed, device.type == "cuda"), data.train.problems


def evaluation_size(run: Detect) -> dict[str, int]:
    """Return the settings of ``EvaluationResize`` for evaluation and prediction."""
    if run.resize is not None:
        return run.resize.arguments()
    short_sides = run.transform.short_side
    short_side = short_sides if isinstance(short_sides, int) else max(short_sides)
    return {"short_side": short_side, "max_size": run.transform.max_size}


def validation_loader(run: Detect, data: LabelledData, resize: EvaluationResize, device: torch.device) -> EvalLoader:
    """Return the batches of the validation images, which ``data`` must have."""
    assert data.val is not None
    return EvalLoader(DetectionSamples(data.val, resize), device.type == "cuda", **run.loader.arguments())


def evaluator(run: Detect, data: LabelledData) -> DetectionEvaluator:
    """Return what measures detections in the validation images, which ``data`` must have."""
    assert data.val is not None
    return run.evaluate.build(data.val.ground_truth, data.val.category_ids)


def detector(run: Detect, classes: list[str]) -> TwoStageDetector:
    """Build a detector with random weights."""
    return build_detector(classes, **run.detector_parts())

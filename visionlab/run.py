"""The life of one run: a checked config in, a run folder with weights, numbers and a report out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from visionlab import __version__, distributed
from visionlab.config import build
from visionlab.config.data import LabelledData
from visionlab.config.load import ConfigError, load, show
from visionlab.config.schema import Detect, Pretrain
from visionlab.data.folder import find_images
from visionlab.data.images import ImageError, read_image
from visionlab.data.problems import Problem
from visionlab.eval.coco_map import CocoMetrics
from visionlab.eval.detection import to_results
from visionlab.eval.drawing import draw_boxes, draw_views, save_jpeg
from visionlab.eval.report import write_report
from visionlab.models.backbone import Backbone
from visionlab.models.detector import read_detector, save_detector
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.models.weights import load_weights, save_backbone
from visionlab.predictor import load_detector
from visionlab.seeding import derive_seed
from visionlab.tasks.detect import DetectTask, detect_all
from visionlab.tasks.pretrain import PretrainTask
from visionlab.train.guard import Interrupted
from visionlab.train.loop import train

console = Console()

# Settings that change where and how a run is done, but not what comes out: a run may be resumed with others.
UNESSENTIAL = ("out.", "device.", "loader.workers.", "checkpoints.", "log.")
RECORDED = ("timm", "albumentations", "numpy", "pillow", "pycocotools")


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
    folder = _open_folder(run, device)
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
    loader, problems = build.unlabelled_loader(run, pretext.views, device)
    _tell(problems)
    task = PretrainTask(pretext)
    if distributed.is_main():
        first = next(iter(loader.batches(0)))
        save_jpeg(draw_views(pretext.pictures(first)), folder / "pictures" / "views.jpg")

    # ---------------------------------------------------------------------------------------------------- train
    optimizer, schedule, log, checkpoints = build.training(run, task, folder, fingerprint(run))
    train(task, loader.batches, optimizer, schedule, log, checkpoints, device, seed=run.seed, **run.train.settings())

    # ----------------------------------------------------------------------------------------------------- keep
    if distributed.is_main():
        provenance = {"method": run.pretext.name, "steps": run.train.steps, "images": loader.sampler.length}
        save_backbone(backbone, folder / "backbone.safetensors", provenance=provenance)
        _say(f"backbone: {folder / 'backbone.safetensors'}")


def _detect(run: Detect, folder: Path, device: torch.device) -> None:
    # ---------------------------------------------------------------------------------------------------- build
    torch.manual_seed(derive_seed(run.seed, "weights"))
    data = build.labelled_data(run, folder)
    detector = build.detector(run, data.train.classes)
    _load(run, detector.backbone)
    loader, problems = build.labelled_loader(run, data, device)
    _tell(problems)
    task = DetectTask(detector)

    def evaluate(step: int) -> dict[str, float]:
        summary = _measure(run, detector, data, folder, step, device).summary()
        # Without any object to find there is no AP, but something must be best.
        return {"AP": 0.0} | {name: value for name, value in summary.items() if value is not None}

    def save(step: int) -> None:
        resize = build.resize(run)
        sizes = {"short_side": resize.short_side, "max_size": resize.max_size}
        save_detector(detector, folder / "detector.safetensors", provenance={"resize": sizes, "steps": step})

    # ---------------------------------------------------------------------------------------------------- train
    optimizer, schedule, log, checkpoints = build.training(run, task, folder, fingerprint(run))
    train(
        task,
        loader.batches,
        optimizer,
        schedule,
        log,
        checkpoints,
        device,
        evaluate=evaluate if data.val else None,
        save_best=save if data.val else None,
        seed=run.seed,
        **run.train.settings(),
    )

    # ----------------------------------------------------------------------------------------------------- keep
    if distributed.is_main():
        if not data.val:
            save(run.train.steps)
        _say(f"detector: {folder / 'detector.safetensors'}")


def _measure(
    run: Detect, detector: TwoStageDetector, data: LabelledData, folder: Path, step: int, device: torch.device
) -> CocoMetrics:
    """Evaluate a detector, and write its metrics, results and pictures."""
    evaluator = build.evaluator(run, data, detector.classes)
    pictures = detect_all(detector, build.validation_loader(run, data, device), evaluator, device)
    results = evaluator.results()
    metrics = evaluator.metrics(results)
    if distributed.is_main():
        name = f"step_{step:08d}"
        _write(folder / "eval" / f"{name}_results.json", json.dumps(results))
        _write(folder / "eval" / f"{name}.json", json.dumps({"step": step, **metrics.to_json()}, indent=1))
        for number, picture in enumerate(pictures):
            save_jpeg(picture, folder / "pictures" / f"val_{number:02d}.jpg")
    return metrics


def evaluate(run: Pretrain | Detect) -> CocoMetrics:
    """Measure ``run.weights``, a detector file, on the validation images of a config; write into the run folder."""
    if not isinstance(run, Detect):
        raise ValueError(f"evaluate: expected a config with task detect, got {run.task}")
    if run.weights is None:
        raise ValueError("evaluate: expected weights=FILE, the detector.safetensors to measure")
    device = _start(run)
    folder = Path(run.out) / "evaluate"
    _make_folders(folder)
    detector = read_detector(run.weights).to(device)
    data = build.labelled_data(run, folder)
    if data.val is None:
        raise ValueError("evaluate: expected validation images in the section data, got none")
    metrics = _measure(run, detector, data, folder, 0, device)
    if distributed.is_main():
        table = Table("metric", escape(run.weights))
        for name, value in metrics.summary().items():
            table.add_row(name, "nothing to find" if value is None else f"{100 * value:.2f}")
        for name, value in metrics.per_class.items():
            table.add_row(f"AP of {escape(name)}", "not in these images" if value is None else f"{100 * value:.2f}")
        console.print(table)
        _say(f"written: {folder / 'eval'}")
    distributed.stop()
    return metrics


def predict(run: Path, images: Sequence[Path], out: Path, *, threshold: float = 0.5, device: str = "auto") -> Path:
    """Detect the objects in images; write COCO results and pictures with boxes.

    Args:
        run: a run folder or ``detector.safetensors``.
        images: image files and folders.
        out: the folder to write: ``results.json`` and a picture for each image.
        threshold: the least score that is drawn; the json holds all.
        device: auto, cpu or cuda.

    Returns:
        The json: a list of images by name, and COCO results whose ``image_id`` counts them from 1.
    """
    predictor = load_detector(run, choose_device(device))
    files = [file for path in images for file in (find_images([str(path)]) if path.is_dir() else [str(path)])]
    out.mkdir(parents=True, exist_ok=True)
    content: dict = {
        "images": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(predictor.classes)],
        "annotations": [],
    }
    bar = track(files, "detecting", console=console, transient=True, disable=not console.is_terminal)
    for number, file in enumerate(bar, start=1):
        try:
            image = read_image(file)
        except ImageError as error:
            _say(f"left out: {error}", style="yellow")
            continue
        found = predictor([image])[0]
        size = image.shape[:2]
        content["images"].append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
        content["annotations"] += to_results(found, number, size, size, [c["id"] for c in content["categories"]])
        shown = found.scores >= threshold
        picture = draw_boxes(
            image,
            found.boxes[shown],
            found.labels[shown].tolist(),
            predictor.classes,
            scores=found.scores[shown].tolist(),
        )
        save_jpeg(picture, out / f"{number:05d}_{Path(file).stem}.jpg")
    if not content["images"]:
        raise ValueError(f"predict: none of {len(files)} images can be read")
    _write(out / "results.json", json.dumps(content))
    _say(f"{len(content['annotations'])} detections in {len(content['images'])} images: {out / 'results.json'}")
    return out / "results.json"


def choose_device(name: str) -> torch.device:
    """Return the device of this process.

    Args:
        name: auto, cpu or cuda; auto takes a GPU where there is one.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a GPU that torch can use, got none; `visionlab doctor` says why")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", distributed.local_rank())
    torch.cuda.set_device(device)
    return device


def fingerprint(run: Pretrain | Detect) -> str:
    """Return a text that changes with every setting that changes what a run computes."""
    return hashlib.sha256(json.dumps(_essential(run), sort_keys=True).encode()).hexdigest()


def _essential(run: Pretrain | Detect) -> dict[str, Any]:
    """Return the settings that change what a run computes, by ``section.key``."""
    settings = _flat(run.model_dump(mode="json"))
    return {key: value for key, value in settings.items() if not f"{key}.".startswith(UNESSENTIAL)}


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _start(run: Pretrain | Detect) -> torch.device:
    device = choose_device(run.device)
    distributed.start(device)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(run.deterministic)
    return device


def _open_folder(run: Pretrain | Detect, device: torch.device) -> Path:
    """Make the run folder and write down what runs, and on what."""
    folder = Path(run.out)
    changed = distributed.broadcast(_changed_settings(run, folder) if distributed.is_main() else None)
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); give the run another folder, restore "
            f"the settings, or remove {folder / 'checkpoints'} to start from step 0"
        )
    if distributed.is_main():
        _make_folders(folder)
        if not _can_resume(folder):
            for measured in (folder / "eval").glob("step_*.json"):
                measured.unlink()  # of an earlier run, whose checkpoints someone removed
        _write(folder / "config.yaml", show(run))
        _write(folder / "environment.json", json.dumps(_environment(run, device), indent=1))
    distributed.barrier()
    return folder


def _environment(run: Pretrain | Detect, device: torch.device) -> dict[str, Any]:
    versions = {"visionlab": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {
        "task": run.task,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "versions": versions | {name: version(name) for name in RECORDED},
    }


def _changed_settings(run: Pretrain | Detect, folder: Path) -> list[str]:
    """Return how a run differs from the one in its folder, whose checkpoints it would go on from."""
    if not _can_resume(folder):
        return []
    try:
        then, now = _essential(load(folder / "config.yaml")), _essential(run)
    except ConfigError:
        return []  # made by another version; the checkpoint itself knows whether it fits
    return [f"{key} was {then.get(key)}, is {now.get(key)}" for key in now | then if now.get(key) != then.get(key)]


def _can_resume(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step_*.pt"))


def _make_folders(folder: Path) -> None:
    for name in ("eval", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def _load(run: Pretrain | Detect, backbone: Backbone) -> None:
    if run.weights is not None:
        report = load_weights(backbone, run.weights, min_matched=run.min_matched)
        _say(f"weights: {report}")


def _tell(problems: Sequence[Problem], most: int = 5) -> None:
    """Name what was wrong with the data, the first few in full."""
    for problem in problems[:most]:
        _say(f"data: {problem}", style="yellow")
    if len(problems) > most:
        _say(f"data: … and {len(problems) - most} more; `visionlab check-data` lists them all", style="yellow")


def _git_commit() -> str | None:
    """Return the commit of the working folder, with ``+`` after it if files differ from it."""
    try:
        describe = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _say(text: str, style: str = "") -> None:
    if distributed.is_main():
        console.print(text, style=style, markup=False, soft_wrap=True, highlight=False)

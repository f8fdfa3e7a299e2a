"""The probe commands: encoders in files are measured at every level, beside encoders with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from visionlab.checks import check_at_least
from visionlab.data.class_folder import ClassFolder
from visionlab.data.coco import CocoDataset
from visionlab.data.loader import EvalLoader
from visionlab.data.samples import DetectionSamples, ViewSamples
from visionlab.data.transforms import EvaluationResize
from visionlab.data.views import CenterCrop
from visionlab.distributed import choose_device
from visionlab.eval.interval import Interval
from visionlab.eval.probe import Encode, Features, extract, pool_levels, probe
from visionlab.eval.roi_probe import extract_rois, roi_probe
from visionlab.files import write_text
from visionlab.models.backbone import Backbone
from visionlab.models.weights import read_backbone
from visionlab.seeding import derive_seed

Scores = dict[str, dict[str, float]]
"""level -> measure -> value in [0, 1]."""


def probe_files(
    weights: Sequence[Path],
    train: Path,
    test: Path,
    out: Path | None = None,
    *,
    image_size: int = 224,
    grid: int = 2,
    neighbors: int = 20,
    labels_per_class: int | None = None,
    seeds: Sequence[int] = (0,),
    random: int = 3,
    limit: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure encoders by nearest neighbors and a linear classifier at every level; print a table.

    Args:
        weights: backbone files or run folders, for example of several seeds of one method.
        train: a folder of a folder of images for each class.
        test: another, with the same classes.
        out: a JSON file to write, if any.
        image_size: side of the middle of an image that the encoder sees, in pixels.
        grid: parts along each side of a level's map whose means are the features.
        neighbors: how many vote.
        labels_per_class: train on so many images of each class, drawn anew by each of ``seeds``; by default on all.
        seeds: of those draws.
        random: how many encoders with random weights to measure beside.
        limit: images of each folder, a fixed choice; all by default.
        device: auto, cpu or cuda.

    Returns:
        What is written: ``trained`` and ``random``, for each encoder its scores, means over the draws of labels if
        there are several; ``draws``, the scores of each draw of each encoder; ``intervals``, mean and half width of the
        Student-t 95 % interval over encoders, or, of a single encoder, over its draws; and the number of classes and
        images.
    """
    if labels_per_class is None and len(set(seeds)) > 1:
        raise ValueError("seeds: no effect without labels_per_class, the probes themselves are not random")
    where = choose_device(device)
    labelled = ClassFolder(root=str(train), limit=limit)
    held_out = ClassFolder(root=str(test), limit=limit, classes=labelled.classes)
    settings: dict[str, Any] = {"neighbors": neighbors, "labels_per_class": labels_per_class, "seeds": seeds}

    def measure(backbone: Backbone) -> list[Scores]:
        encode = encoder_of(backbone.to(where).eval(), grid)
        return probe_folder(encode, labelled, held_out, image_size=image_size, device=where, **settings)

    draws = {arm: [measure(each) for each in encoders] for arm, encoders in _arms(weights, random)}
    result: dict[str, Any] = {arm: [_mean(scores) for scores in encoders] for arm, encoders in draws.items()}
    result |= {"draws": draws, "classes": len(labelled.classes), "images": [len(labelled), len(held_out)]}
    return _report(result, out, f"accuracy on {len(held_out)} images of {len(labelled.classes)} classes, in percent")


def probe_folder(
    encode: Encode,
    train: str | Path | ClassFolder,
    test: str | Path | ClassFolder,
    *,
    image_size: int = 224,
    neighbors: int = 20,
    labels_per_class: int | None = None,
    seeds: Sequence[int] = (0,),
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> list[Scores]:
    """Measure any function from images to features by nearest neighbors and a linear classifier.

    Args:
        encode: makes of ``(N, 3, image_size, image_size)`` uint8 RGB images on ``device`` features ``(N, D)``, or a
            dictionary of several levels of them; it is called once for every batch of images, without gradient.
        train: a folder of a folder of images for each class, or such a dataset.
        test: another, with the same classes.
        image_size: side of the middle of an image, in pixels.
        neighbors: how many vote.
        labels_per_class: train on so many images of each class, drawn anew by each of ``seeds``; by default on all.
        seeds: of those draws.
        batch_size: images at once.
        device: where the images are put.

    Returns:
        For each seed: level -> ``knn`` and ``linear``, accuracies in [0, 1]; a level without a name is ``features``.

    Raises:
        ValueError: the folders hold other classes than each other, or a class has too few images.
    """
    labelled = train if isinstance(train, ClassFolder) else ClassFolder(root=str(train))
    held_out = test if isinstance(test, ClassFolder) else ClassFolder(root=str(test), classes=labelled.classes)
    if held_out.classes != labelled.classes:
        raise ValueError(f"test: expected the classes of train, {labelled.classes}, got {held_out.classes}")
    where, parts = torch.device(device), []
    for data in (labelled, held_out):
        samples = ViewSamples(data, CenterCrop(image_size))
        loader = EvalLoader(samples, batch_size=batch_size, workers=_workers(where))
        parts.append(extract(encode, loader, data.labels, where))
    return [
        probe(parts[0], parts[1], neighbors=neighbors, labels_per_class=labels_per_class, seed=seed) for seed in seeds
    ]


def probe_rois(
    weights: Sequence[Path],
    train: tuple[Path, Path],
    test: tuple[Path, Path],
    out: Path | None = None,
    *,
    short_side: int = 800,
    max_size: int = 1333,
    random: int = 3,
    limit: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure encoders by a linear classifier of labelled boxes at every level; print a table.

    Args:
        weights: backbone files or run folders, for example of several seeds of one method.
        train: a COCO json and the folder of its images.
        test: another, with the same classes.
        out: a JSON file to write, if any.
        short_side: length of the shorter side of an image, in pixels.
        max_size: the most pixels that the longer side may have.
        random: how many encoders with random weights to measure beside.
        limit: images of each json, a fixed choice; all by default.
        device: auto, cpu or cuda.

    Returns:
        What is written: ``trained`` and ``random``, the scores of each encoder; ``intervals``, mean and half width of
        the Student-t 95 % interval over encoders; the number of classes and boxes; the share of the largest class.
    """
    where = choose_device(device)
    labelled = CocoDataset(annotations=str(train[0]), images=str(train[1]), limit=limit)
    held_out = CocoDataset(annotations=str(test[0]), images=str(test[1]), limit=limit, classes=labelled.classes)
    resize = EvaluationResize(short_side=short_side, max_size=max_size)

    def measure(backbone: Backbone) -> Scores:
        return roi_probe(*(box_features(backbone, data, resize, where) for data in (labelled, held_out)))

    result: dict[str, Any] = {arm: [measure(each) for each in encoders] for arm, encoders in _arms(weights, random)}
    boxes = [sum(int((~record.crowd).sum()) for record in data.records) for data in (labelled, held_out)]
    labels = np.concatenate([record.labels[~record.crowd] for record in held_out.records])
    share = float(np.bincount(labels).max() / len(labels))
    result |= {"classes": len(labelled.classes), "boxes": boxes, "largest_class": share}
    title = f"accuracy on {boxes[1]} boxes of {len(labelled.classes)} classes, in percent"
    return _report(result, out, f"{title}; always naming the most frequent class gives {100 * share:.1f}")


def encoder_of(backbone: Backbone, grid: int = 2) -> Encode:
    """Return a backbone as a function from images to features: parts of the map of every level, and pooled.

    Args:
        backbone: on the device of the images, in evaluation mode.
        grid: parts along each side of a level's map whose means are the features.
    """
    return lambda images: pool_levels(backbone(backbone.normalize(images)), backbone.strides, grid)


def box_features(
    backbone: Backbone, data: CocoDataset, resize: EvaluationResize, device: torch.device, batch_size: int = 8
) -> Features:
    """Return the features of every labelled box, at every level."""
    backbone.to(device).eval()
    loader = EvalLoader(DetectionSamples(data, resize), batch_size=batch_size, workers=_workers(device))
    return extract_rois(
        lambda batch: backbone(backbone.normalize(batch.pixels, batch.sizes)), backbone.strides, loader, device
    )


def random_backbone(settings: dict[str, Any], seed: int) -> Backbone:
    """Return a backbone with the weights that a run with this seed would start from."""
    torch.manual_seed(derive_seed(seed, "weights"))
    return Backbone(**settings)


def _arms(weights: Sequence[Path], random: int) -> Iterator[tuple[str, Iterator[Backbone]]]:
    check_at_least(0, random=random)
    if not weights:
        raise ValueError("expected the file of a backbone, got none")
    settings = read_backbone(weights[0]).settings
    yield "trained", (read_backbone(path) for path in weights)
    yield "random", (random_backbone(settings, seed) for seed in range(random))


def _workers(device: torch.device) -> int:
    return 0 if device.type == "cpu" else 4


def _mean(draws: Sequence[Scores]) -> Scores:
    return {
        level: {measure: fmean(draw[level][measure] for draw in draws) for measure in measures}
        for level, measures in draws[0].items()
    }


def _intervals(encoders: Sequence[Scores], draws: Sequence[Sequence[Scores]]) -> dict[str, dict[str, Interval]]:
    """Return level -> measure -> interval: over encoders, or over the draws of labels of a single one."""
    samples = draws[0] if len(encoders) == 1 and draws else encoders
    return {
        level: {measure: Interval.of([each[level][measure] for each in samples]) for measure in measures}
        for level, measures in samples[0].items()
    }


def _report(result: dict[str, Any], out: Path | None, title: str) -> dict[str, Any]:
    """Add the intervals, print a row for each level, with a column for each arm and measure, and write the file."""
    arms = [arm for arm in ("trained", "random") if result[arm]]
    found = {arm: _intervals(result[arm], result.get("draws", {}).get(arm, [])) for arm in arms}
    columns = [(arm, measure) for arm in arms for measure in next(iter(found[arm].values()))]
    table = Table("level", *(f"{measure}, {arm}" for arm, measure in columns), title=title)
    for level in found["trained"]:
        table.add_row(level, *(found[arm][level][measure].text() for arm, measure in columns))
    console = Console()
    console.print(table)
    console.print(
        f"encoders: {len(result['trained'])} trained, {len(result['random'])} random; ± is a Student-t 95 % interval "
        "over them, or, of a single one, over draws of labels"
    )
    result["intervals"] = {
        arm: {level: {name: each.to_json() for name, each in row.items()} for level, row in levels.items()}
        for arm, levels in found.items()
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(result, indent=1))
    return result

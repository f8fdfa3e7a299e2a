"""Where the images of a run come from: what the section ``data`` of a config may name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from visionlab import distributed
from visionlab.data.annotated import AnnotatedData, AnnotatedPart
from visionlab.data.folder import ImageFolder
from visionlab.data.labelled import LabelledData, labelled_data
from visionlab.data.layouts import coco as coco_layout
from visionlab.data.layouts import read_layout
from visionlab.data.layouts import voc as voc_layout
from visionlab.data.places import CocoFiles, LabelledCocoFiles, LabelledVocSets, Root, VocSets
from visionlab.data.selection import ClassSelection, Selection, Validation
from visionlab.data.synthetic import SyntheticSettings, write_synthetic
from visionlab.data.unlabelled import UnlabelledImages, images_in, unlabelled_data
from visionlab.settings import flat_settings

# --- images to pretrain on -------------------------------------------------------------------------------------------


@flat_settings
def auto_unlabelled(*, where: Root, selection: Selection) -> UnlabelledImages:
    """The images in a folder, whatever it holds: of a dataset those to train on, else all.

    Args:
        where: the folder.
        selection: which images are used, and what is done with faulty ones.
    """
    return images_in(where.root, selection)


@flat_settings
def coco_unlabelled(*, where: Root = Root(root="."), files: CocoFiles, selection: Selection) -> UnlabelledImages:
    """The images of COCO json files without their boxes, to pretrain on the images that a detector is trained on.

    Args:
        where: the folder of the dataset.
        files: its json, of which only the list of images is used, and its images.
        selection: which images are used, and what is done with faulty ones.
    """
    return unlabelled_data(_coco_data(where.root, files, ("train",)), selection)


@flat_settings
def yolo_unlabelled(*, where: Root, selection: Selection) -> UnlabelledImages:
    """The images of a YOLO dataset to train on, without their boxes.

    Args:
        where: the folder of the dataset, or its ``data.yaml``.
        selection: which images are used, and what is done with faulty ones.
    """
    return unlabelled_data(read_layout("yolo", where.root, ("train",)), selection)


@flat_settings
def voc_unlabelled(*, where: Root, sets: VocSets, selection: Selection) -> UnlabelledImages:
    """The images of a VOC dataset to train on, without their boxes.

    Args:
        where: the folder of the dataset.
        sets: the lists of its images, of one year or of several.
        selection: which images are used, and what is done with faulty ones.
    """
    return unlabelled_data(_voc_data(where.root, sets, ("train",)), selection)


@flat_settings
def synthetic_unlabelled(*, where: Root, amount: SyntheticSettings) -> ImageFolder:
    """The unlabelled images of the embedded dataset.

    Args:
        where: the folder of the dataset, which is drawn if it is not there.
        amount: how many images are drawn, and how large.
    """
    _draw(where.root, amount)
    return ImageFolder(root=os.path.join(where.root, "unlabelled"))


PRETRAIN_DATA: dict[str, Callable[..., Any]] = {
    "auto": auto_unlabelled,
    "folder": ImageFolder,
    "coco": coco_unlabelled,
    "yolo": yolo_unlabelled,
    "voc": voc_unlabelled,
    "synthetic": synthetic_unlabelled,
}

# --- labelled images, to train and measure a detector ----------------------------------------------------------------


@flat_settings
def auto(
    out: Path, *, where: Root, labels: ClassSelection, selection: Selection, validation: Validation
) -> LabelledData:
    """The annotated dataset in a folder, in whatever layout: COCO json, YOLO or VOC.

    Args:
        out: the run folder; a split is written there.
        where: the folder of the dataset.
        labels: which classes are used, and whether images without a box are trained on.
        selection: which images are trained on, and what is done with faulty ones.
        validation: what is evaluated on, with the same classes, images without a box and no limit.
    """
    return _labelled("auto", out, where, labels, selection, validation)


@flat_settings
def coco(
    out: Path,
    *,
    where: Root = Root(root="."),
    files: LabelledCocoFiles,
    labels: ClassSelection,
    selection: Selection,
) -> LabelledData:
    """Images with COCO json files, and either others to evaluate on or a share of the same.

    Args:
        out: the run folder; a split is written there.
        where: the folder of the dataset.
        files: the json to train on and its images, and what is evaluated on, with the same classes, images without a
            box and no limit.
        labels: which classes are used, and whether images without a box are trained on.
        selection: which images are trained on, and what is done with faulty ones.
    """
    return labelled_data(_coco_data(where.root, files, ("train", files.evaluate_on)), out, labels, selection, files)


@flat_settings
def yolo(
    out: Path, *, where: Root, labels: ClassSelection, selection: Selection, validation: Validation
) -> LabelledData:
    """A YOLO dataset: ``images/`` and ``labels/``, with or without ``data.yaml``.

    Args:
        out: the run folder; a split is written there.
        where: the folder of the dataset, or its ``data.yaml``.
        labels: which classes are used, and whether images without a box are trained on.
        selection: which images are trained on, and what is done with faulty ones.
        validation: what is evaluated on, with the same classes, images without a box and no limit.
    """
    return _labelled("yolo", out, where, labels, selection, validation)


@flat_settings
def voc(out: Path, *, where: Root, sets: LabelledVocSets, labels: ClassSelection, selection: Selection) -> LabelledData:
    """A VOC dataset: an xml file for each image, in ``Annotations/`` or beside the images.

    Args:
        out: the run folder; a split is written there.
        where: the folder of the dataset, or of several years of it.
        sets: the lists of its images, what is evaluated on, with the same classes, images without a box and no limit,
            and what training makes of difficult objects.
        labels: which classes are used, and whether images without a box are trained on.
        selection: which images are trained on, and what is done with faulty ones.
    """
    data = _voc_data(where.root, sets, ("train", sets.evaluate_on))
    return labelled_data(data, out, labels, selection, sets, difficult=sets.difficult)


@flat_settings
def synthetic(out: Path, *, where: Root, amount: SyntheticSettings) -> LabelledData:
    """The labelled images of the embedded dataset.

    Args:
        out: the run folder; nothing is written there.
        where: the folder of the dataset, which is drawn if it is not there.
        amount: how many images are drawn, and how large.
    """
    _draw(where.root, amount)
    files = LabelledCocoFiles(
        annotations="annotations/train.json", images="train", val_annotations="annotations/val.json", val_images="val"
    )
    data = _coco_data(where.root, files, ("train", "val"))
    return labelled_data(data, out, ClassSelection(keep_unused=True), Selection(), files)


DETECT_DATA: dict[str, Callable[..., LabelledData]] = {
    "auto": auto,
    "coco": coco,
    "yolo": yolo,
    "voc": voc,
    "synthetic": synthetic,
}


def _labelled(
    name: str, out: Path, where: Root, labels: ClassSelection, selection: Selection, validation: Validation
) -> LabelledData:
    data = read_layout(name, where.root, ("train", validation.evaluate_on))
    return labelled_data(data, out, labels, selection, validation)


def _coco_data(root: str, files: CocoFiles, roles: tuple[str, ...]) -> AnnotatedData:
    """Read the COCO json files that settings name, or, if they name none, those in the folder."""
    if files.annotations is None:
        return read_layout("coco", root, roles)

    def read(annotations: str | list[str], images: str | list[str] | None) -> AnnotatedPart:
        several = [annotations] if isinstance(annotations, str) else annotations
        folders = images if isinstance(images, list) else [images] * len(several)
        return coco_layout.join(
            [
                coco_layout.read_json(os.path.join(root, file), None if folder is None else os.path.join(root, folder))
                for file, folder in zip(several, folders, strict=True)
            ]
        )

    parts = {"train": read(files.annotations, files.images)}
    if isinstance(files, LabelledCocoFiles) and files.val_annotations is not None:
        images = files.images if isinstance(files.images, str) else None
        parts["val"] = read(files.val_annotations, files.val_images or images)
    return AnnotatedData("COCO json", parts)


def _voc_data(root: str, sets: VocSets, roles: tuple[str, ...]) -> AnnotatedData:
    """Read the lists of a VOC dataset that settings name, or, if they name none, what is in its folder."""
    if sets.image_sets is None:
        return read_layout("voc", root, roles)
    named = {"train": sets.image_sets, "val": getattr(sets, "val_image_sets", None)}
    several = {role: [names] if isinstance(names, str) else names for role, names in named.items() if names is not None}
    return voc_layout.read_image_sets(root, several)


def _draw(root: str, amount: SyntheticSettings) -> None:
    """Draw the embedded dataset, once on each machine."""
    if distributed.local_rank() == 0:
        console = Console()
        seen = distributed.is_main() and console.is_terminal
        with Progress(console=console, transient=True, disable=not seen) as bars:
            bar = bars.add_task("drawing images", total=amount.unlabelled + amount.labelled + amount.validation)
            write_synthetic(
                root, amount=amount, progress=lambda done, total: bars.update(bar, completed=done, total=total)
            )
    distributed.barrier()

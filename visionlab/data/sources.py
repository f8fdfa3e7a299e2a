"""Where the images of a run come from: what the section ``data`` of a config may name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
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
from visionlab.data.selection import ClassSelection, Selection, Validation
from visionlab.data.synthetic import SyntheticSettings, write_synthetic
from visionlab.data.unlabelled import UnlabelledImages, images_in, unlabelled_data
from visionlab.settings import Settings, flat_settings


@dataclass(frozen=True, kw_only=True)
class Root(Settings):
    """Where a dataset lies.

    Args:
        root: the folder of the dataset, from which its other paths start.
    """

    root: str


@dataclass(frozen=True, kw_only=True)
class CocoFiles(Settings):
    """The files of a COCO dataset; without them they are looked for in its folder.

    Args:
        annotations: the COCO json, or several, whose categories of one name are one.
        images: the folder of the images, or one for each json; by default the one near the json that has them.
    """

    annotations: str | list[str] | None = None
    images: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.annotations is not None and not self.annotations:
            raise ValueError(f"annotations: expected a json or several, got {self.annotations!r}")
        if self.annotations is None and self.images is not None:
            raise ValueError("images: no effect without annotations")
        _check_folders("images", self.images, self.annotations)


@dataclass(frozen=True, kw_only=True)
class LabelledCocoFiles(CocoFiles, Validation):
    """The files of a COCO dataset, to train on and to evaluate on.

    Args:
        val_annotations: the COCO json to evaluate on, or several.
        val_images: the folder of its images, or one for each json; by default ``images``.
    """

    val_annotations: str | list[str] | None = None
    val_images: str | list[str] | None = None

    def __post_init__(self) -> None:
        CocoFiles.__post_init__(self)
        Validation.__post_init__(self)
        if self.val_fraction is not None and self.val_annotations is not None:
            raise ValueError("val_fraction: expected either val_fraction or val_annotations, got both")
        if self.val_annotations is None and self.val_images is not None:
            raise ValueError("val_images: no effect without val_annotations")
        _check_folders("val_images", self.val_images, self.val_annotations)
        if self.annotations is None and self.val_annotations is not None:
            raise ValueError("val_annotations: expected annotations beside it, got none")
        if self.annotations is not None and self.evaluate_on == "test":
            raise ValueError("evaluate_on: no effect beside annotations; val_annotations names what is evaluated on")


def _check_folders(name: str, folders: str | list[str] | None, annotations: str | list[str] | None) -> None:
    """Refuse a list of folders that is not one for each json."""
    if isinstance(folders, list) and (not isinstance(annotations, list) or len(folders) != len(annotations)):
        raise ValueError(f"{name}: expected one folder, or one for each json, got {len(folders)} folders")


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
def voc_unlabelled(*, where: Root, selection: Selection) -> UnlabelledImages:
    """The images of a VOC dataset to train on, without their boxes.

    Args:
        where: the folder of the dataset.
        selection: which images are used, and what is done with faulty ones.
    """
    return unlabelled_data(read_layout("voc", where.root, ("train",)), selection)


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
def voc(
    out: Path, *, where: Root, labels: ClassSelection, selection: Selection, validation: Validation
) -> LabelledData:
    """A VOC dataset: an xml file for each image, in ``Annotations/`` or beside the images.

    Args:
        out: the run folder; a split is written there.
        where: the folder of the dataset.
        labels: which classes are used, and whether images without a box are trained on.
        selection: which images are trained on, and what is done with faulty ones.
        validation: what is evaluated on, with the same classes, images without a box and no limit.
    """
    return _labelled("voc", out, where, labels, selection, validation)


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

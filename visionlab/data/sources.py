"""Where the images of a run come from: what the section ``data`` of a config may name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from visionlab import distributed
from visionlab.checks import check_in
from visionlab.data.annotated import AnnotatedPart
from visionlab.data.coco import CocoDataset
from visionlab.data.coco_json import read_coco
from visionlab.data.copies import find_leaks
from visionlab.data.folder import ImageFolder
from visionlab.data.looks import NEAR_COPIES
from visionlab.data.selection import LabelSelection, Selection
from visionlab.data.split import split_part
from visionlab.data.synthetic import SyntheticSettings, write_synthetic
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
    """The files of a COCO dataset.

    Args:
        annotations: the COCO json.
        images: the folder of its images.
    """

    annotations: str
    images: str


@dataclass(frozen=True, kw_only=True)
class Validation(Settings):
    """Which share of the labelled images is evaluated on.

    Args:
        val_fraction: evaluate on this share of the training images, between 0 and 1, and train on the others.
        split_seed: another seed, another split.
        near_copies: copies of one photo are not divided: those that Roboflow made, equal files, and images that look
            the same. These may differ in this share of a hash of 256 comparisons, from 0 to 1; 0 leaves looks out.
    """

    val_fraction: float | None = None
    split_seed: int = 0
    near_copies: float = NEAR_COPIES

    def __post_init__(self) -> None:
        check_in("(0, 1)", val_fraction=self.val_fraction)
        check_in("[0, 1]", near_copies=self.near_copies)
        for name, default in (("split_seed", 0), ("near_copies", NEAR_COPIES)):
            if self.val_fraction is None and getattr(self, name) != default:
                raise ValueError(f"{name}: no effect without val_fraction")


@dataclass(frozen=True, kw_only=True)
class CocoValidation(Validation):
    """Which labelled images are evaluated on: others, or a share of those to train on.

    Args:
        val_annotations: the COCO json to evaluate on.
        val_images: the folder of its images; by default ``images``.
    """

    val_annotations: str | None = None
    val_images: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_fraction is not None and self.val_annotations is not None:
            raise ValueError("val_fraction: expected either val_fraction or val_annotations, got both")
        if self.val_annotations is None and self.val_images is not None:
            raise ValueError("val_images: no effect without val_annotations")


# --- unlabelled images, to pretrain on -------------------------------------------------------------------------------


class UnlabelledCoco:
    """The images of a COCO json without their boxes, to pretrain on the very images that a detector is trained on.

    Args:
        where: the folder of the dataset.
        files: its json, of which only the list of images is used, and its images.
        selection: which images are used, and what is done with faulty ones.
    """

    @flat_settings
    def __init__(self, *, where: Root = Root(root="."), files: CocoFiles, selection: Selection) -> None:
        self._dataset = _coco(where.root, files.annotations, files.images, selection=selection)
        self.files = [record.file for record in self._dataset.records]
        self.problems = self._dataset.problems
        self.policy = selection.policy

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return the ``(height, width, 3)`` uint8 RGB pixels of one image."""
        return self._dataset.load(index)[0]


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
    "folder": ImageFolder,
    "coco": UnlabelledCoco,
    "synthetic": synthetic_unlabelled,
}

# --- labelled images, to train and measure a detector ----------------------------------------------------------------


@dataclass(frozen=True)
class LabelledData:
    """Images to train on, and those to evaluate on, if any, with the same classes in the same order.

    Args:
        train: the images to train on.
        val: those to evaluate on.
        notes: what is worth saying about them, one line each.
    """

    train: CocoDataset
    val: CocoDataset | None
    notes: tuple[str, ...] = ()


@flat_settings
def coco(
    out: Path,
    *,
    where: Root = Root(root="."),
    files: CocoFiles,
    validation: CocoValidation,
    labels: LabelSelection,
    selection: Selection,
) -> LabelledData:
    """Images with a COCO json, and either others to evaluate on or a share of the same.

    Args:
        out: the run folder; a split is written there.
        where: the folder of the dataset.
        files: the json to train on, and its images.
        validation: what is evaluated on, with the same classes, images without a box and no limit.
        labels: which classes are used, and whether images without a box are trained on.
        selection: which images are trained on, and what is done with faulty ones.
    """

    def read(annotations: str, images: str) -> AnnotatedPart:
        file = os.path.join(where.root, annotations)
        return AnnotatedPart(read_coco(file), os.path.join(where.root, images), file)

    part = read(files.annotations, files.images)
    val_part = None
    if validation.val_fraction is not None:
        part, val_part = split(part, out, validation)
    elif validation.val_annotations is not None:
        val_part = read(validation.val_annotations, validation.val_images or files.images)
    train = CocoDataset(part, labels=labels, selection=selection, role="training")
    if all(record.crowd.all() for record in train.records):
        raise ValueError(f"{train.source}: expected a box to train on in at least one of {len(train)} images, got none")
    if val_part is None:
        return LabelledData(train, None, part.notes)
    val = CocoDataset(val_part, classes=train.classes, policy=selection.policy, role="validation")
    return LabelledData(train, val, (*part.notes, *leak_notes(train, val)))


def leak_notes(train: CocoDataset, val: CocoDataset) -> list[str]:
    """Return a line if images to evaluate on are copies of images to train on, as far as names and bytes tell.

    Looks, for which every image must be decoded, are left to the checker.
    """
    if not distributed.is_main():
        return []
    parts = {name: [record.file for record in part.records] for name, part in (("train", train), ("val", val))}
    return [f"leak: {leak}; `visionlab check-data` names all" for leak in find_leaks(parts, near_copies=None)]


def split(part: AnnotatedPart, out: Path, validation: Validation) -> tuple[AnnotatedPart, AnnotatedPart]:
    """Split images into those to train on and those to evaluate on, with a bar that shows how far it has come."""
    assert validation.val_fraction is not None
    console = Console()
    with Progress(console=console, transient=True, disable=not (distributed.is_main() and console.is_terminal)) as bars:
        bar = bars.add_task("looking for copies", total=None)
        return split_part(
            part,
            folder=str(out),
            val_fraction=validation.val_fraction,
            seed=validation.split_seed,
            near_copies=validation.near_copies,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )


@flat_settings
def synthetic(out: Path, *, where: Root, amount: SyntheticSettings) -> LabelledData:
    """The labelled images of the embedded dataset.

    Args:
        out: the run folder; nothing is written there.
        where: the folder of the dataset, which is drawn if it is not there.
        amount: how many images are drawn, and how large.
    """
    _draw(where.root, amount)
    train = _coco(where.root, "annotations/train.json", "train")
    return LabelledData(train, _coco(where.root, "annotations/val.json", "val", classes=train.classes))


DETECT_DATA: dict[str, Callable[..., LabelledData]] = {"coco": coco, "synthetic": synthetic}


def _coco(root: str, annotations: str, images: str, **settings: Any) -> CocoDataset:
    return CocoDataset(annotations=os.path.join(root, annotations), images=os.path.join(root, images), **settings)


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

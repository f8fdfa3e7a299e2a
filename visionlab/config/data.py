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
from visionlab.data.coco import CocoDataset, check_coco
from visionlab.data.folder import ImageFolder
from visionlab.data.problems import Policy
from visionlab.data.split import split_coco
from visionlab.data.synthetic import write_synthetic

# --- unlabelled images, to pretrain on -------------------------------------------------------------------------------


class UnlabelledCoco:
    """The images of a COCO json without their boxes, to pretrain on the very images that a detector is trained on.

    Args:
        root: the folder that the other paths start from.
        annotations: the COCO json; only its list of images is used.
        images: the folder of the images.
        limit: use this many images, a fixed choice that grows with the limit; all by default.
        policy: what to do with faulty files: repair | skip | fail.
    """

    def __init__(
        self, *, root: str = ".", annotations: str, images: str, limit: int | None = None, policy: Policy = "repair"
    ) -> None:
        self._dataset = _coco(root, annotations, images, limit=limit, policy=policy)
        self.files = [record.file for record in self._dataset.records]
        self.problems = self._dataset.problems
        self.policy = policy

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return the ``(height, width, 3)`` uint8 RGB pixels of one image."""
        return self._dataset.load(index)[0]


def synthetic_unlabelled(
    *, root: str, unlabelled: int, labelled: int, validation: int, image_size: int = 128, seed: int = 0
) -> ImageFolder:
    """The unlabelled images of the embedded dataset.

    Args:
        root: the folder of the dataset, which is drawn if it is not there.
        unlabelled: number of images without labels, to pretrain on.
        labelled: number of training images with labels.
        validation: number of labelled images to evaluate on.
        image_size: side of an image in pixels.
        seed: another seed, other images.
    """
    _draw(root, unlabelled, labelled, validation, image_size, seed)
    return ImageFolder(root=os.path.join(root, "unlabelled"))


PRETRAIN_DATA: dict[str, Callable[..., Any]] = {
    "folder": ImageFolder,
    "coco": UnlabelledCoco,
    "synthetic": synthetic_unlabelled,
}

# --- labelled images, to train and measure a detector ----------------------------------------------------------------


@dataclass(frozen=True)
class LabelledData:
    """Images to train on, and those to evaluate on, if any, with the same classes in the same order."""

    train: CocoDataset
    val: CocoDataset | None


def coco(
    out: Path,
    *,
    root: str = ".",
    annotations: str,
    images: str,
    val_annotations: str | None = None,
    val_images: str | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    classes: list[str] | None = None,
    limit: int | None = None,
    keep_empty: bool = True,
    policy: Policy = "repair",
) -> LabelledData:
    """Images with a COCO json, and either others to evaluate on or a share of the same.

    Args:
        out: the run folder; a split is written there.
        root: the folder that the other paths start from.
        annotations: the COCO json to train on.
        images: the folder of its images.
        val_annotations: the COCO json to evaluate on.
        val_images: the folder of its images; by default ``images``.
        val_fraction: evaluate on this share of the images of ``annotations``, between 0 and 1, and train on the others.
        split_seed: another seed, another split.
        classes: the category names to use, in the order of labels; by default all of the training json.
        limit: train on this many images, a fixed choice that grows with the limit; all by default.
        keep_empty: train on images without a box too.
        policy: what to do with faulty files and annotations: repair | skip | fail.
    """
    if val_fraction is not None:
        split = split_coco(os.path.join(root, annotations), folder=str(out), val_fraction=val_fraction, seed=split_seed)
        annotations, val_annotations = (os.path.abspath(path) for path in split)
    train = _coco(root, annotations, images, classes=classes, policy=policy, keep_empty=keep_empty, limit=limit)
    if all(record.crowd.all() for record in train.records):
        file = os.path.join(root, annotations)
        raise ValueError(f"{file}: no object to train on: expected a box in at least one of {len(train)} images")
    if val_annotations is None:
        return LabelledData(train, None)
    return LabelledData(train, _coco(root, val_annotations, val_images or images, classes=train.classes, policy=policy))


def check_labelled(*, val_fraction: float | None, **others: Any) -> None:
    """Refuse the settings of ``coco`` that no file can make right."""
    check_in("(0, 1)", val_fraction=val_fraction)
    check_coco(**others)


def synthetic(
    out: Path,
    *,
    root: str,
    unlabelled: int,
    labelled: int,
    validation: int,
    image_size: int = 128,
    seed: int = 0,
) -> LabelledData:
    """The labelled images of the embedded dataset.

    Args:
        out: the run folder; nothing is written there.
        root: the folder of the dataset, which is drawn if it is not there.
        unlabelled: number of images without labels, to pretrain on.
        labelled: number of training images with labels.
        validation: number of labelled images to evaluate on.
        image_size: side of an image in pixels.
        seed: another seed, other images.
    """
    _draw(root, unlabelled, labelled, validation, image_size, seed)
    train = _coco(root, "annotations/train.json", "train")
    return LabelledData(train, _coco(root, "annotations/val.json", "val", classes=train.classes))


DETECT_DATA: dict[str, Callable[..., LabelledData]] = {"coco": coco, "synthetic": synthetic}


def _coco(root: str, annotations: str, images: str, **settings: Any) -> CocoDataset:
    return CocoDataset(annotations=os.path.join(root, annotations), images=os.path.join(root, images), **settings)


def _draw(root: str, unlabelled: int, labelled: int, validation: int, image_size: int, seed: int) -> None:
    """Draw the embedded dataset, once on each machine."""
    if distributed.local_rank() == 0:
        console = Console()
        seen = distributed.is_main() and console.is_terminal
        with Progress(console=console, transient=True, disable=not seen) as bars:
            bar = bars.add_task("drawing images", total=unlabelled + labelled + validation)
            write_synthetic(
                root,
                unlabelled=unlabelled,
                labelled=labelled,
                validation=validation,
                image_size=image_size,
                seed=seed,
                progress=lambda done, total: bars.update(bar, completed=done),
            )
    distributed.barrier()

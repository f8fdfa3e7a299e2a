"""What a first config depends on: how many images there are, how large they are, and how large the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionlab.data.copies import group_photos
from visionlab.data.images import ImageError, read_image_sizes
from visionlab.data.labelled import LabelledData, labelled_data
from visionlab.data.layouts import recognize
from visionlab.data.looks import Progress
from visionlab.data.problems import summarize
from visionlab.data.selection import ClassSelection, Selection, Validation
from visionlab.data.unlabelled import images_in, unlabelled_data


@dataclass(frozen=True)
class Objects:
    """The labelled objects of the images to train on.

    Args:
        classes: the names of those that occur, in the order of labels.
        boxes: ``(N, 2)`` float64, heights and widths in pixels.
        labels: ``(N,)`` int64, the class of each, as an index into ``classes``.
        most: the most boxes of one image.
        images: number of images to train on.
        val_images: number of images to evaluate on; 0 if they have to be taken from those to train on.
        photos: of how many photos those to train on are, if so; else 0.
    """

    classes: list[str]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    most: int
    images: int
    val_images: int
    photos: int


@dataclass(frozen=True)
class Survey:
    """What was found in a folder.

    Args:
        root: the folder.
        notes: how it was understood, and what else is worth saying, one line each.
        images: number of images to pretrain on.
        sizes: ``(M, 2)`` float64, heights and widths of images in pixels.
        objects: what is labelled, if anything is.
    """

    root: str
    notes: tuple[str, ...]
    images: int
    sizes: NDArray[np.float64]
    objects: Objects | None


def survey(root: str, progress: Progress | None = None) -> Survey:
    """Look at a dataset, in whatever layout it lies in a folder.

    Args:
        root: the folder.
        progress: called with the number of images looked at and their total.

    Raises:
        ValueError: there is no such folder, or nothing in it to train on.
    """
    data = recognize(root)
    if data is None or "train" not in data.parts:
        images = images_in(root, Selection())
        return Survey(root, images.notes, len(images), _sizes(images.files), None)
    if not data.parts["train"].content["annotations"]:
        images = unlabelled_data(data, Selection())
        return Survey(root, images.notes, len(images), _sizes(images.files), None)
    labelled = labelled_data(data, Path(), ClassSelection(), Selection(), Validation())
    sizes = np.array([(record.height, record.width) for record in labelled.train.records], dtype=float)
    notes = [*labelled.notes]
    for name, part in (("train", labelled.train), ("val", labelled.val)):
        if part is not None and part.problems:
            notes.append(f"{name}: {summarize(part.problems)}; `visionlab check-data {root}` names them")
    images = unlabelled_data(data, Selection())
    return Survey(root, tuple(notes), len(images), sizes, _objects(labelled, progress))


def _sizes(files: Sequence[str]) -> NDArray[np.float64]:
    """Return the heights and widths of a sample of image files, which tells as much as all of them."""
    sample = read_image_sizes(files[:: max(1, len(files) // 1000)])
    return np.array([size for size in sample if not isinstance(size, ImageError)], dtype=float)


def _objects(data: LabelledData, progress: Progress | None) -> Objects:
    records = data.train.records
    boxes = np.concatenate([record.boxes[~record.crowd] for record in records]).astype(float)
    labels = np.concatenate([record.labels[~record.crowd] for record in records])
    # Where there are images to evaluate on, copies among the others do not matter.
    photos = 0 if data.val else len(group_photos([record.file for record in records], progress=progress).members())
    return Objects(
        classes=data.train.classes,
        boxes=np.stack([boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1),
        labels=labels,
        most=max(int((~record.crowd).sum()) for record in records),
        images=len(records),
        val_images=len(data.val) if data.val else 0,
        photos=photos,
    )

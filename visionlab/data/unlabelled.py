"""Images to pretrain on, from whatever a folder holds: those of a dataset without its boxes, or plain files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from visionlab.data.annotated import AnnotatedData
from visionlab.data.coco import CocoDataset
from visionlab.data.folder import ImageFolder
from visionlab.data.images import read_image_by_policy
from visionlab.data.layouts import recognize
from visionlab.data.layouts.names import folders_below, role_of
from visionlab.data.problems import Policy, Problem
from visionlab.data.selection import Selection
from visionlab.data.split import choose


class UnlabelledImages:
    """Image files that are known to be readable.

    Args:
        files: their paths.
        problems: what was wrong with others.
        notes: what is worth saying about them, one line each.
        policy: what to do with files that turn out to be damaged: repair | skip | fail.
    """

    def __init__(
        self, files: Sequence[str], problems: Sequence[Problem], notes: Sequence[str], policy: Policy = "repair"
    ) -> None:
        self.files, self.problems, self.notes = list(files), list(problems), tuple(notes)
        self.policy: Policy = policy

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return the ``(height, width, 3)`` uint8 RGB pixels of one image.

        Raises:
            ImageError: if the file gives no pixels.
        """
        return read_image_by_policy(self.files[index], self.policy)


def unlabelled_data(data: AnnotatedData, selection: Selection) -> UnlabelledImages:
    """Return the images of a dataset to train on, without their boxes, and those it has without annotations."""
    part = data.parts.get("train")
    if part is None:
        raise ValueError(f"expected images to train on, got {data}{''.join(f'; {note}' for note in data.notes)}")
    part = replace(part, content={**part.content, "annotations": []})
    if not data.unlabelled:
        datasets: list[CocoDataset | ImageFolder] = [CocoDataset(part, selection=selection, role="training")]
        files = _files(datasets[0])
    else:
        datasets = [CocoDataset(part, policy=selection.policy, role="training")]
        datasets += [ImageFolder(root=folder, policy=selection.policy) for folder in data.unlabelled]
        files = [file for dataset in datasets for file in _files(dataset)]
        if selection.limit is not None:
            files = choose(files, selection.limit, key=os.path.basename)
    problems = [problem for dataset in datasets for problem in dataset.problems]
    return UnlabelledImages(files, problems, [str(data), *data.notes, *part.notes], selection.policy)


def _files(dataset: CocoDataset | ImageFolder) -> list[str]:
    return dataset.files if isinstance(dataset, ImageFolder) else [record.file for record in dataset.records]


def images_in(root: str, selection: Selection) -> UnlabelledImages:
    """Return the images to pretrain on that are in a folder, whatever it holds.

    Of an annotated dataset they are those to train on, and those in folders called unlabelled; never those to evaluate
    on. Of a folder without annotations they are all images, or, where folders in it are called train, val or test,
    those in train.
    """
    data = recognize(root, ("train",))
    if data is not None and "train" in data.parts:
        return unlabelled_data(data, selection)
    roles = {folder: role_of(os.path.basename(folder)) for folder in folders_below(root)}
    chosen = [folder for folder, role in roles.items() if role in ("train", "unlabelled")]
    if "train" not in roles.values() and any(role in ("val", "test") for role in roles.values()):
        chosen = [folder for folder, role in roles.items() if role not in ("val", "test")]
    images = ImageFolder(root=chosen or root, selection=selection)
    where = ", ".join(chosen) or root
    notes = [f"images without annotations: {where} ({len(images)} images)", *(data.notes if data else ())]
    return UnlabelledImages(images.files, images.problems, notes, selection.policy)

"""What makes a dataset the one it is, wherever it lies: its classes, and the names and boxes of its images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visionlab.data.coco import CocoDataset


@dataclass(frozen=True)
class Identity:
    """What a dataset holds; two are equal if a run on one may go on with the other.

    Args:
        images: how many.
        digest: a text that changes with the name of any image, with the length of its file, and with any box, label or
            size that is known of it.
        classes: the names of its labels, in their order; none where nothing is labelled.
        boxes: how many, crowd regions among them.
    """

    images: int
    digest: str
    classes: tuple[str, ...] = ()
    boxes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a json file."""
        return {**asdict(self), "classes": list(self.classes)}

    def difference(self, earlier: Identity) -> str:
        """Return in words how a dataset differs from the one it was earlier, or nothing where it does not."""
        changes = [
            f"{name} were {_shown(was)}, are {_shown(now)}"
            for name in ("classes", "images", "boxes")
            if (was := getattr(earlier, name)) != (now := getattr(self, name))
        ]
        if not changes and self.digest != earlier.digest:
            changes = ["names of images, their sizes, boxes or labels differ, in equal numbers"]
        return "; ".join(changes)


def identify(dataset: CocoDataset | Any) -> Identity:
    """Return what a dataset holds; where it lies makes no difference.

    Args:
        dataset: labelled images, or any dataset with a list ``files``, of which the paths count from the folder that
            all lie in.
    """
    digest = hashlib.sha256()
    if not isinstance(dataset, CocoDataset):
        folder = common_folder(dataset.files)
        for file in dataset.files:
            digest.update(_file_text(os.path.relpath(file, folder), file))
        return Identity(len(dataset.files), digest.hexdigest())
    for record, image in zip(dataset.records, dataset.ground_truth["images"], strict=True):
        digest.update(_file_text(image["file_name"], record.file))
        for array in (np.array([record.height, record.width]), record.boxes, record.labels, record.crowd):
            digest.update(array.tobytes())
    boxes = sum(len(record.boxes) for record in dataset.records)
    return Identity(len(dataset.records), digest.hexdigest(), tuple(dataset.classes), boxes)


def common_folder(files: Sequence[str]) -> str:
    """Return the innermost folder that all files lie in."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])


def _file_text(name: str, file: str) -> bytes:
    size = os.path.getsize(file) if os.path.exists(file) else None
    return f"{name}\0{size}\0".encode("utf-8", "backslashreplace")


def _shown(value: Any) -> str:
    text = f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."

"""Images in a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

from visionlab.data.folder import ImageFolder
from visionlab.data.problems import Policy


class ClassFolder(ImageFolder):
    """Image files in one folder for each class; how deep below it a file lies makes no difference.

    Args:
        root: the folder of the classes' folders.
        limit: use this many images, a fixed choice that grows with the limit; all by default.
        policy: what to do with faulty files: repair | skip | fail.
        classes: the names of the classes, in the order of labels; by default all folders that hold an image, sorted.

    Raises:
        ValueError: there is no image, an image lies outside the folders, or in one of another class.
    """

    def __init__(
        self, *, root: str, limit: int | None = None, policy: Policy = "repair", classes: list[str] | None = None
    ) -> None:
        super().__init__(root=root, limit=limit, policy=policy)
        names = [_class_of(file, root) for file in self.files]
        self.classes = sorted(set(names)) if classes is None else list(classes)
        unexpected = sorted(set(names) - set(self.classes))
        if unexpected:
            raise ValueError(f"{root}: expected folders of the classes {self.classes}, found also {unexpected}")
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = [number[name] for name in names]


def _class_of(file: str, root: str) -> str:
    parts = Path(os.path.relpath(file, root)).parts
    if len(parts) < 2:
        raise ValueError(f"{root}: expected a folder for each class, but {parts[-1]} lies in none")
    return parts[0]

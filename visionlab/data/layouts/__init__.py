"""How annotated datasets lie on disk: one file for each layout, which reads it as content in COCO's form."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection

from visionlab.data.annotated import AnnotatedData
from visionlab.data.layouts import coco, voc, yolo
from visionlab.data.layouts.names import ROLES

Reader = Callable[[str, Collection[str]], AnnotatedData | None]

# A reader answers None for a folder that does not look like its layout. The first that does not is taken.
LAYOUTS: dict[str, Reader] = {"coco": coco.read, "yolo": yolo.read, "voc": voc.read}


def recognize(root: str, roles: Collection[str] = ROLES) -> AnnotatedData | None:
    """Read an annotated dataset in any of the layouts; None if a folder looks like none of them.

    Args:
        root: the folder, or the ``data.yaml`` of a YOLO dataset.
        roles: the parts to read: train, val, test.

    Raises:
        ValueError: the folder is none, or its annotations cannot be read.
    """
    _check_there(root)
    readers = [yolo.read] if os.path.isfile(root) else LAYOUTS.values()
    return next((data for reader in readers if (data := reader(root, roles)) is not None), None)


def read_layout(name: str, root: str, roles: Collection[str] = ROLES) -> AnnotatedData:
    """Read an annotated dataset of one layout.

    Args:
        name: a key of ``LAYOUTS``, or ``auto`` for the first that fits.
        root: the folder, or the ``data.yaml`` of a YOLO dataset.
        roles: the parts to read: train, val, test.

    Raises:
        ValueError: the folder is none, or not of this layout, or its annotations cannot be read.
    """
    if name == "auto":
        data, wanted = recognize(root, roles), "COCO json, YOLO or VOC"
    else:
        _check_there(root, file=name == "yolo")
        data, wanted = LAYOUTS[name](root, roles), {"coco": "COCO json", "yolo": "YOLO", "voc": "VOC"}[name]
    if data is None:
        raise ValueError(f"{root}: expected annotations, {wanted}, got {_found(root)}")
    if not data.parts:
        raise ValueError(f"{root}: expected annotated images, got none: {'; '.join(data.notes)}")
    return data


def _check_there(root: str, *, file: bool = True) -> None:
    """Refuse what is no folder, nor, if it may be, the description of a YOLO dataset."""
    described = file and os.path.isfile(root) and root.lower().endswith((".yaml", ".yml"))
    if not os.path.isdir(root) and not described:
        got = "a file" if os.path.exists(root) else "nothing there"
        raise ValueError(f"{root}: expected the folder of a dataset, got {got}")


def _found(root: str) -> str:
    """Return what kinds of files there are in a folder, in words."""
    suffixes = Counter(os.path.splitext(name)[1] or "no suffix" for _, _, names in os.walk(root) for name in names)
    return ", ".join(f"{count} files of {suffix}" for suffix, count in suffixes.most_common(5)) or "no files"

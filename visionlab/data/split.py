"""Part of the images: a fixed choice of some, or a COCO json split in two."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from visionlab.checks import check_in
from visionlab.data.coco_json import read_coco
from visionlab.seeding import derive_seed

T = TypeVar("T")


def choose(items: Sequence[T], count: int, *, key: Callable[[T], str], seed: int = 0) -> list[T]:
    """Return ``count`` items in their own order; which ones depends on nothing but their keys and the seed.

    A larger count keeps the choice of a smaller one.
    """
    order = sorted(range(len(items)), key=lambda i: derive_seed(seed, "choose", key(items[i])))
    return [items[i] for i in sorted(order[:count])]


def split_coco(annotations: str, *, folder: str, val_fraction: float, seed: int = 0) -> tuple[Path, Path]:
    """Write the images of a COCO json, with their annotations, as two json files: for training and for validation.

    A file listed as two images stays on one side. Files that hold this very split already are left alone, so that a run
    that is resumed, and every process of a run, gets the same two.

    Args:
        annotations: the json to split.
        folder: where ``<name>_train.json`` and ``<name>_val.json`` go.
        val_fraction: the share of images for validation, between 0 and 1; each side gets at least one.
        seed: another seed, another split.

    Returns:
        The paths for training and validation.

    Raises:
        ValueError: if the json cannot be split, or the folder holds a different split.
    """
    check_in("(0, 1)", val_fraction=val_fraction)
    content = read_coco(annotations)
    names: dict[Any, str] = {}
    for image in content["images"]:
        names.setdefault(str(image.get("id")), str(image.get("file_name")))
    files = list(dict.fromkeys(names.values()))
    if len(files) < 2:
        raise ValueError(f"{annotations}: expected at least 2 images to split, got {len(files)}")
    count = min(max(round(len(files) * val_fraction), 1), len(files) - 1)
    chosen = set(choose(files, count, key=str, seed=seed))
    parts = []
    for part in ("train", "val"):
        ids = {number for number, name in names.items() if (name in chosen) == (part == "val")}
        # An annotation of no image goes to training, where it will be named as a problem.
        lost = {str(a.get("image_id")) for a in content["annotations"]} - set(names) if part == "train" else set()
        rows = {
            "images": [image for image in content["images"] if str(image.get("id")) in ids],
            "annotations": [a for a in content["annotations"] if str(a.get("image_id")) in ids | lost],
        }
        path = Path(folder, f"{Path(annotations).stem}_{part}.json")
        origin = {"file": os.path.basename(annotations), "part": part, "val_fraction": val_fraction, "seed": seed}
        _write_once(path, json.dumps({**content, **rows, "split": origin}))
        parts.append(path)
    return parts[0], parts[1]


def _write_once(path: Path, text: str) -> None:
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path}: holds a different split; expected to find none, or this one; move it away first")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same content at once: each renames a file of its own into place.
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    own.write_text(text, encoding="utf-8")
    os.replace(own, path)

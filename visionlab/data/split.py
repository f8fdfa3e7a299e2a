"""Part of the images: a fixed choice of some, or a dataset split in two, the copies of a photo on one side."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from visionlab import distributed
from visionlab.checks import check_in
from visionlab.data.annotated import AnnotatedPart
from visionlab.data.copies import group_photos
from visionlab.data.file_names import FileNames
from visionlab.data.looks import NEAR_COPIES, Progress
from visionlab.seeding import derive_seed

T = TypeVar("T")


def choose(items: Sequence[T], count: int, *, key: Callable[[T], str], seed: int = 0) -> list[T]:
    """Return ``count`` items in their own order; which ones depends on nothing but their keys and the seed.

    A larger count keeps the choice of a smaller one.
    """
    order = sorted(range(len(items)), key=lambda i: derive_seed(seed, "choose", key(items[i])))
    return [items[i] for i in sorted(order[:count])]


def choose_groups(groups: Sequence[Sequence[str]], count: int, *, seed: int = 0) -> list[int]:
    """Return the numbers of groups that hold ``count`` names between them, or as near to it as groups can come.

    Which groups depends on nothing but their names and the seed; at least one is chosen, and one is left.

    Raises:
        ValueError: there are not two groups.
    """
    if len(groups) < 2:
        raise ValueError(f"expected at least 2 groups to choose from, got {len(groups)}")
    order = sorted(range(len(groups)), key=lambda n: derive_seed(seed, "choose", min(groups[n])))
    sizes = [len(groups[n]) for n in order]
    # Bit b of reachable[i] says whether the groups from the i-th on hold b names between them in some combination.
    most = max(2 * count, min(sizes))
    reachable = [1]
    for size in reversed(sizes):
        both = (reachable[-1] | reachable[-1] << size) & ((2 << most) - 1)
        reachable.append(reachable[-1] if both == reachable[-1] else both)
    reachable.reverse()
    totals = [total for total in range(1, min(most, sum(sizes) - 1) + 1) if reachable[0] >> total & 1]
    left = min(totals, key=lambda total: (abs(total - count), total))
    chosen = []
    for number, size, rest in zip(order, sizes, reachable[1:], strict=True):
        if size <= left and rest >> (left - size) & 1:
            chosen.append(number)
            left -= size
    return chosen


def split_part(
    part: AnnotatedPart,
    *,
    folder: str,
    val_fraction: float,
    seed: int = 0,
    near_copies: float | None = NEAR_COPIES,
    progress: Progress | None = None,
) -> tuple[AnnotatedPart, AnnotatedPart]:
    """Split the images of a dataset, with their annotations, into those for training and those for validation.

    The copies of one photo stay on one side (``group_photos``), so does a file listed as two images. The split is
    written as two json files, and one that is there already is taken, whatever version made it: a run that is resumed
    goes on with its own. Every process of a run gets the split of the main process, which alone looks at files.

    Args:
        part: what to split.
        folder: where ``<name>_train.json`` and ``<name>_val.json`` go.
        val_fraction: the share of images for validation, between 0 and 1; each side gets at least one photo.
        seed: another seed, another split.
        near_copies: how much two images that look the same may differ; 0 or None leaves looks out.
        progress: called with the number of files looked at and their total.

    Raises:
        ValueError: on every process, if the images cannot be split, or the folder holds a different split.
    """
    check_in("(0, 1)", val_fraction=val_fraction)
    origin = {
        "file": os.path.basename(part.source),
        "val_fraction": val_fraction,
        "seed": seed,
        "near_copies": near_copies or 0,
    }
    split = _Split(part, Path(folder), origin)
    outcome: tuple[set[str], str] | ValueError | None = None
    if distributed.is_main():
        try:
            outcome = split.read() or split.draw(progress)
        except ValueError as error:
            outcome = error
    outcome = distributed.broadcast(outcome)
    if isinstance(outcome, ValueError):
        raise outcome
    assert outcome is not None
    chosen, note = outcome
    train, val = (split.content(chosen, side) for side in ("train", "val"))
    return (
        replace(part, content=train, notes=(*part.notes, note)),
        replace(part, content=val, problems=(), notes=()),
    )


class _Split:
    """The split of one part in one folder; ``origin`` is what it depends on."""

    def __init__(self, part: AnnotatedPart, folder: Path, origin: dict[str, Any]) -> None:
        self.part, self.origin = part, origin
        self.paths = {side: folder / f"{Path(part.source).stem}_{side}.json" for side in ("train", "val")}
        self.names: dict[str, str] = {}
        for image in part.content["images"]:
            self.names.setdefault(_id(image.get("id")), str(image.get("file_name")))

    def content(self, chosen: set[str], side: str) -> dict[str, Any]:
        """Return the images of one side, and their annotations; ``chosen`` names the files for validation."""
        ids = {number for number, name in self.names.items() if (name in chosen) == (side == "val")}
        rows = self.part.content["annotations"]
        # An annotation of no image goes to training, where it will be named as a problem.
        lost = {_id(row.get("image_id")) for row in rows} - set(self.names) if side == "train" else set()
        return {
            **self.part.content,
            "images": [image for image in self.part.content["images"] if _id(image.get("id")) in ids],
            "annotations": [row for row in rows if _id(row.get("image_id")) in ids | lost],
        }

    def read(self) -> tuple[set[str], str] | None:
        """Return the split that was written before, if there is one, after making sure that it is this one."""
        if not all(path.exists() for path in self.paths.values()):
            return None
        stored = {side: _read(path) for side, path in self.paths.items()}
        chosen = {str(image.get("file_name")) for image in stored["val"].get("images", ())}
        for side, path in self.paths.items():
            origin = {"near_copies": self.origin["near_copies"], **stored[side].pop("split", {})}
            same = all(origin.get(key) == value for key, value in self.origin.items())
            if not same or json.dumps(stored[side]) != json.dumps(self.content(chosen, side)):
                raise ValueError(
                    f"{path}: holds a different split; expected to find none, or the one of {self.part.source} as it "
                    "is now; move it away first"
                )
        return chosen, origin.get("note", f"split: as in {path}")

    def draw(self, progress: Progress | None) -> tuple[set[str], str]:
        """Draw the split, and write it down."""
        names = list(dict.fromkeys(self.names.values()))
        if len(names) < 2:
            raise ValueError(f"{self.part.source}: expected at least 2 images to split, got {len(names)}")
        files = FileNames(self.part.images).paths(names)
        photos = group_photos(files, near_copies=self.origin["near_copies"], progress=progress)
        groups = [[names[index] for index in group] for group in photos.members()]
        if len(groups) < 2:
            raise ValueError(
                f"{self.part.source}: expected images of at least 2 photos to split, got {photos.describe(names)}; "
                "near_copies says how much alike copies are, 0 takes only their names and bytes"
            )
        count = min(max(round(len(names) * self.origin["val_fraction"]), 1), len(names) - 1)
        chosen = {name for n in choose_groups(groups, count, seed=self.origin["seed"]) for name in groups[n]}
        note = f"split: {len(chosen)} of {len(names)} images are for validation; {photos.describe(names)}"
        for side, path in self.paths.items():
            origin = {**self.origin, "part": side, "note": note}
            _write(path, json.dumps({**self.content(chosen, side), "split": origin}))
        return chosen, note


def _id(value: object) -> str:
    """Return an id as text, the same for 1, 1.0 and "1"."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    own.write_text(text, encoding="utf-8")
    os.replace(own, path)

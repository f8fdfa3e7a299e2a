"""YOLO: for each image a file of labels, one row an object, in coordinates relative to the image's size."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from visionlab.data.annotated import AnnotatedData, AnnotatedPart
from visionlab.data.images import ImageError, read_image_sizes
from visionlab.data.layouts.names import ROLES, relative_names, some, unlabelled_folders
from visionlab.data.layouts.yolo_files import Description, describe
from visionlab.data.problems import Problem

RELATIVE = 2.0  # coordinates beyond this are no slip over the edge of the image, they are no relative ones
NO_LABELS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt")


def read(root: str, roles: Collection[str] = ROLES) -> AnnotatedData | None:
    """Read a YOLO dataset, if a folder is one.

    ``data.yaml`` names classes and parts; without it the names of folders tell the parts, and ``classes.txt`` the
    classes, else they are named by number. A part is a folder of images, or a list of them, whose labels lie in
    ``labels/`` where the images lie in ``images/``, or beside them. A row is ``class x y width height``, x and y of the
    center, with or without a confidence, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, of which the box is taken. An
    empty label file, or none, says that there is no object in an image.

    Args:
        root: the folder, or a ``data.yaml``.
        roles: the parts to read.
    """
    description = describe(root)
    if description is None:
        return None
    labels = {role: _Labels(files, description.keypoints) for role, files in description.parts.items() if role in roles}
    notes = list(description.notes)
    for role in [role for role, read_ in labels.items() if not read_.files]:
        notes.append(f"{role}: none of {len(labels.pop(role).images)} images has a label file: not used")
    numbers = sorted({number for read_ in labels.values() for number in read_.counts})
    categories = _categories(description, numbers)
    if description.names is None:
        notes.append(f"classes are named by their numbers: {some([str(number) for number in numbers], 10)}")
    parts = {role: read_.part(description, categories) for role, read_ in labels.items()}
    unread = tuple(role for role in description.parts if role not in roles)
    return AnnotatedData("YOLO", parts, unread, unlabelled_folders(description.root), tuple(notes))


def read_row(words: Sequence[str], keypoints: int = 0) -> tuple[int, tuple[float, float, float, float]]:
    """Return the class number of a row and its box: ``x1, y1, x2, y2`` relative to the image.

    Args:
        words: what stands in the row.
        keypoints: how many numbers for key points follow the box.

    Raises:
        ValueError: what was expected and what is there.
    """
    try:
        number, *values = map(float, words)
    except ValueError:
        raise ValueError(f"expected numbers, got {' '.join(words)[:80]!r}") from None
    if number < 0 or not number.is_integer():
        raise ValueError(f"expected a class number, got {words[0]}")
    if not all(abs(value) <= RELATIVE for value in values):
        wrong = next(value for value in values if not abs(value) <= RELATIVE)
        raise ValueError(f"expected coordinates relative to the image, 0 to 1, got {wrong:g}")
    if len(values) in (4, 5) or (keypoints and len(values) == 4 + keypoints):
        x, y, width, height = values[:4]
        return int(number), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(values) >= 6 and len(values) % 2 == 0:
        return int(number), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    raise ValueError(f"expected a class with 4 numbers, 5, or pairs for 3 corners or more, got {len(values)} numbers")


@dataclass(frozen=True)
class _Row:
    image: int
    number: int
    box: tuple[float, float, float, float]
    place: str


@dataclass
class _Labels:
    """The label files of some images."""

    images: list[str]
    keypoints: int
    files: list[str] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = [_label_file(image) for image in self.images]
        self.missing = found.count(None)
        self.empty = self.confidences = self.bad = 0
        self.files = [file for file in found if file is not None]
        for image, file in enumerate(found):
            if file is not None:
                self._read(image, file)
        self.counts = Counter(row.number for row in self.rows)
        if self.bad > len(self.rows):
            total = self.bad + len(self.rows)
            raise ValueError(f"{self.bad} of {total} rows are no YOLO labels, the first: {self.problems[0]}")

    def _read(self, image: int, file: str) -> None:
        text = Path(file).read_text(encoding="utf-8-sig", errors="replace")
        lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        self.empty += not lines
        for number, words in lines:
            place = f"{file}, line {number}"
            try:
                self.rows.append(_Row(image, *read_row(words, self.keypoints), place))
            except ValueError as error:
                self.bad += 1
                self.problems.append(Problem("bad-row", file, str(error), action="left out", place=f"line {number}"))
            else:
                self.confidences += len(words) == 6

    def part(self, description: Description, categories: list[dict[str, Any]]) -> AnnotatedPart:
        """Return the labels in COCO's form, for which the sizes of the images are read."""
        folder, names = relative_names(self.images, description.root)
        sizes = read_image_sizes(self.images)
        images: list[dict[str, Any]] = [{"id": n, "file_name": name} for n, name in enumerate(names, start=1)]
        for image, size in zip(images, sizes, strict=True):
            if not isinstance(size, ImageError):
                image["height"], image["width"] = size
        annotations, places = [], {}
        for number, row in enumerate(self.rows, start=1):
            size = sizes[row.image]
            if not isinstance(size, ImageError):
                (height, width), (x1, y1, x2, y2) = size, row.box
                # To a millionth of a pixel, which is finer than the labels: 20.0 in messages, not 19.999999999999996.
                bbox = [round(v, 6) for v in (x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height)]
                annotations.append(
                    {"id": number, "image_id": row.image + 1, "category_id": row.number, "bbox": bbox, "iscrowd": 0}
                )
                places[number] = os.path.relpath(row.place, description.root)
        content = {"images": images, "annotations": annotations, "categories": categories}
        source = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in self.files])
        notes = tuple(self._notes(description))
        return AnnotatedPart(content, folder, source, tuple(self.problems), notes, places, sized=True)

    def _notes(self, description: Description) -> Iterator[str]:
        if self.missing:
            yield f"{self.missing} of {len(self.images)} images have no label file: taken as images without an object"
        if self.empty:
            yield f"{self.empty} label files are empty: images without an object"
        strays = [os.path.relpath(s, description.root) for s in _without_image(self.images, self.files)]
        if strays:
            yield f"{len(strays)} label files have no image: {some(strays)}"
        if self.confidences:
            yield f"{self.confidences} rows have a sixth number, a confidence: it is not used"
        if description.names is not None:
            beyond = sorted(number for number in self.counts if number not in description.names)
            if beyond:
                first = next(row.place for row in self.rows if row.number == beyond[0])
                ids = some([str(number) for number in beyond], 10)
                rows = sum(self.counts[number] for number in beyond)
                yield (
                    f"{rows} rows are of class {ids}, of which {description.source} names none, the first: {first}; "
                    f"`classes` may name them by number, else they are not used"
                )


def _categories(description: Description, numbers: Sequence[int]) -> list[dict[str, Any]]:
    names = description.names or {}
    categories: list[dict[str, Any]] = [{"id": number, "name": name} for number, name in sorted(names.items())]
    for number in numbers:
        if number not in names:
            name = str(number) if str(number) not in names.values() else f"class {number}"
            categories.append({"id": number, "name": name, "declared": description.names is None})
    return categories


def _label_file(image: str) -> str | None:
    """Return the label file of an image, if there is one: in ``labels/`` for ``images/``, or beside it."""
    return next((file for file in map(str, _label_candidates(PurePath(image))) if os.path.isfile(file)), None)


def _label_candidates(image: PurePath) -> list[PurePath]:
    label, parts = image.with_suffix(".txt"), list(image.parts[:-1])
    places = [n for n, part in enumerate(parts) if part.lower() in ("images", "jpegimages")]
    swapped = []
    if places:
        last = places[-1]
        swapped = [PurePath(*parts[:last], name, *parts[last + 1 :], label.name) for name in ("labels", "Labels")]
    return [*swapped, image.parent / "labels" / label.name, image.parent.parent / "labels" / label.name, label]


def _without_image(images: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return the files among the labels that belong to no image, not even to one that is not used."""
    folders = {os.path.dirname(file) for file in labels}
    beside = {os.path.dirname(file) for file in images}
    names = {name for folder in beside for name in os.listdir(folder) if not name.lower().endswith(".txt")}
    stems = {os.path.splitext(name)[0] for name in names}
    return sorted(
        os.path.join(folder, name)
        for folder in folders
        for name in os.listdir(folder)
        if name.lower().endswith(".txt") and name.lower() not in NO_LABELS and os.path.splitext(name)[0] not in stems
    )

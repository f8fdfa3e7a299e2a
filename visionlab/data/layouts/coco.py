"""COCO json: one or several files, beside the images as Roboflow writes them, or in a folder of their own."""

from __future__ import annotations

import mmap
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote

from visionlab.data.annotated import AnnotatedData, AnnotatedPart
from visionlab.data.coco_json import is_id, read_coco
from visionlab.data.folder import SUFFIXES
from visionlab.data.layouts.names import ROLES, files_below, folders_below, role_of, role_of_folder, unlabelled_folders

DEPTH = 2  # of folders below the root in which a json is looked for
SAMPLE = 50  # file names that are looked for in a folder to tell whether it is that of the images


def read(root: str, roles: Collection[str] = ROLES) -> AnnotatedData | None:
    """Read the COCO json files of a folder, if there are any; their names or folders say which part each is.

    Of COCO's own annotations, ``instances_*.json`` are taken. A single json, or several that speak of no part, are to
    train on. Several of one part are joined.
    """
    files = [file for file in files_below(root, ".json", DEPTH) if _is_coco(file)]
    if not files:
        return None
    files = [file for file in files if os.path.basename(file).startswith("instances")] or files
    by_role = defaultdict(list)
    for file in files:
        by_role[role_of(os.path.basename(file)) or role_of_folder(os.path.dirname(file), root)].append(file)
    others = by_role.pop(None, [])
    if "train" not in by_role:
        by_role["train"], others = others, []
    notes = [f"{file}: not used, its name says neither train, val nor test" for file in others]
    wanted = [role for role in ROLES if by_role.get(role)]
    parts = {role: join([_read_near(file, root, role) for file in by_role[role]]) for role in wanted if role in roles}
    unread = tuple(role for role in wanted if role not in roles)
    return AnnotatedData("COCO json", parts, unread, unlabelled_folders(root), tuple(notes))


def read_json(annotations: str, images: str | None = None) -> AnnotatedPart:
    """Read one COCO json.

    Args:
        annotations: the json.
        images: the folder that its file names start from; by default the one near the json that has them.
    """
    if images is None:
        return _read_near(annotations, os.path.dirname(annotations) or ".", role_of(os.path.basename(annotations)))
    return AnnotatedPart(read_coco(annotations), images, annotations)


def _read_near(annotations: str, root: str, role: str | None) -> AnnotatedPart:
    """Read one COCO json of a dataset, with the folder that has its images.

    Args:
        annotations: the json.
        root: the folder of the dataset.
        role: which part of the dataset the json is.
    """
    content = read_coco(annotations)
    return AnnotatedPart(content, _image_folder(content["images"], _candidates(annotations, root, role)), annotations)


def _image_folder(entries: Sequence[dict[str, Any]], folders: Sequence[str]) -> str:
    """Return the one of some folders from which the file names of a json start, as far as can be told."""
    names = [entry["file_name"] for entry in entries if isinstance(entry.get("file_name"), str) and entry["file_name"]]
    names = names[:: max(1, len(names) // SAMPLE)]
    exact = {folder: sum(os.path.isfile(os.path.join(folder, name)) for name in names) for folder in folders}
    best = max(folders, key=lambda folder: exact[folder])
    if exact[best] == len(names):
        return best

    # Names that do not fit are for the check to understand; here it is enough where one file has such a name.
    def fits(folder: str) -> tuple[int, int, int]:
        files = Counter(_stem(file) for _, _, files in os.walk(folder) for file in files if _is_image(file))
        one = sum(files[_stem(name)] == 1 or os.path.isfile(os.path.join(folder, name)) for name in names)
        return one, exact[folder], len(PurePath(folder).parts)

    return max(folders, key=fits)


def _candidates(annotations: str, root: str, role: str | None) -> list[str]:
    """Return folders that may hold the images of a json, the likelier first."""
    own = os.path.dirname(annotations) or "."
    firsts = [*folders_below(own), *folders_below(root)]
    below = [folder for first in firsts for folder in (first, *folders_below(first))]
    of_part = [folder for folder in below if role_of_folder(folder, root) == role]
    of_none = [folder for folder in below if role_of_folder(folder, root) is None]
    return list(dict.fromkeys([own, *of_part, *of_none, root]))


def _stem(name: str) -> str:
    return os.path.splitext(unquote(name).replace("\\", "/").rpartition("/")[2])[0].casefold()


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def _is_coco(file: str) -> bool:
    """Return whether a file names what a COCO json must have; files may be too large to be read for that."""
    if not os.path.getsize(file):
        return False
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(f'"{key}"'.encode()) >= 0 for key in ("images", "annotations", "categories"))


def join(parts: Sequence[AnnotatedPart]) -> AnnotatedPart:
    """Return parts as one: categories of one name are one, ids are kept apart."""
    if len(parts) == 1:
        return parts[0]
    folder = os.path.commonpath([os.path.abspath(part.images) for part in parts])
    if all(part.images == parts[0].images for part in parts):
        folder = parts[0].images
    joined = _Joined()
    for part in parts:
        joined.add(part, os.path.relpath(part.images, folder))
    return AnnotatedPart(
        {"images": joined.images, "annotations": joined.annotations, "categories": list(joined.categories.values())},
        folder,
        ", ".join(part.source for part in parts),
        tuple(problem for part in parts for problem in part.problems),
        tuple(note for part in parts for note in part.notes),
        joined.places,
        all(part.sized for part in parts),
    )


class _Joined:
    """The content of several parts. An id stays what it is unless an earlier part has it."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories: dict[Any, dict[str, Any]] = {}  # by name
        self.places: dict[Any, str] = {}
        self._image_ids, self._annotation_ids, self._category_ids = _FreeIds(), _FreeIds(), _FreeIds()

    def add(self, part: AnnotatedPart, folder: str) -> None:
        categories = self._add_categories(part.content["categories"])
        images: dict[str, int] = {}  # the new id of each old one
        for entry in part.content["images"]:
            key, name = str(entry.get("id")), entry.get("file_name")
            if key not in images:
                images[key] = self._image_ids.take(entry.get("id"))
            file = os.path.normpath(os.path.join(folder, name)) if isinstance(name, str) and name else name
            self.images.append({**entry, "id": images[key], "file_name": file})
        for entry in part.content["annotations"]:
            old, image, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
            number = self._annotation_ids.take(old)
            self.places[number] = part.places.get(old, f"{part.source}, annotation {old}")
            ids = {"id": number, "image_id": images.get(str(image)), "category_id": categories.get(str(category))}
            self.annotations.append({**entry, **ids})

    def _add_categories(self, entries: Sequence[dict[str, Any]]) -> dict[str, int]:
        """Add the categories whose names are new; return the id of each by what it was in the part, as text."""
        ids = {}
        for entry in entries:
            name, old = entry.get("name"), entry.get("id")
            if name not in self.categories:
                self.categories[name] = {**entry, "id": self._category_ids.take(old)}
            ids[str(old)] = self.categories[name]["id"]
        return ids


class _FreeIds:
    """Ids that are given once."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._highest = 0

    def take(self, wanted: Any) -> int:
        """Return the wanted id if it can be one and is free, else the one above all others."""
        number = wanted if is_id(wanted) and wanted not in self._taken else self._highest + 1
        self._taken.add(number)
        self._highest = max(self._highest, number)
        return number

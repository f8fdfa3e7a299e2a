"""Where a YOLO dataset has its images, and what its classes are called: ``data.yaml``, or the folders themselves."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePath
from typing import Any

import yaml

from visionlab.data.folder import find_images
from visionlab.data.layouts.names import ROLES, files_below, role_of, role_of_folder

KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.names")
_CLASSES = re.compile(rb"^(names|nc) *:", re.MULTILINE)
_PARTS = re.compile(rb"^(train|val|valid|validation|test) *:", re.MULTILINE)
DEPTH = 2  # of folders below the root in which descriptions and labels are looked for


@dataclass(frozen=True)
class Description:
    """What is known of a YOLO dataset before its labels are read.

    Args:
        root: the folder of the dataset.
        source: what names its classes, for messages.
        names: the classes by number; None if nothing names them.
        parts: the image files by role: train, val, test.
        keypoints: how many numbers for key points follow the box in a row.
        notes: what is worth saying, one line each.
    """

    root: str
    source: str
    names: dict[int, str] | None
    parts: dict[str, list[str]]
    keypoints: int = 0
    notes: tuple[str, ...] = ()


def describe(root: str) -> Description | None:
    """Describe the YOLO dataset in a folder, or of a ``data.yaml``; None if there is none."""
    file = root if os.path.isfile(root) else _yaml_file(root)
    if file is not None:
        return _describe_yaml(file, os.path.dirname(root) or "." if os.path.isfile(root) else root)
    if not _has_labels(root):
        return None
    names_file = next((f for f in files_below(root, "", DEPTH) if os.path.basename(f).lower() in NAME_FILES), None)
    parts = _listed_parts(root) or _parts_by_folder(root)
    names = None if names_file is None else dict(enumerate(_lines(names_file)))
    return Description(root, names_file or root, names, parts)


# --- data.yaml -------------------------------------------------------------------------------------------------------


def read_yaml(file: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, which has no need of aliases.

    Raises:
        ValueError: the file is no YAML, holds something else, or uses aliases.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError(f"{file}: expected YAML without aliases, got one")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file}: expected YAML, got {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a mapping with names, train and val, got {type(content).__name__}")
    return content


def _yaml_file(root: str) -> str | None:
    """Return the YAML file of a folder that describes a dataset; ``data.yaml`` goes before others."""
    files = [*files_below(root, ".yaml", 0), *files_below(root, ".yml", 0)]
    files.sort(key=lambda file: os.path.splitext(os.path.basename(file))[0].lower() not in ("data", "dataset"))
    for file in files:
        text = Path(file).read_bytes()
        if _CLASSES.search(text) and _PARTS.search(text):
            return file
    return None


def _describe_yaml(file: str, root: str) -> Description:
    content, notes = read_yaml(file), []
    names = _names(content, file)
    count = content.get("nc")
    if "names" in content and isinstance(count, int) and count != len(names or {}):
        notes.append(f"{file}: nc is {count}, names has {len(names or {})}: the names are taken")
    bases = [root, os.path.dirname(file) or "."]
    if isinstance(content.get("path"), str):
        bases = [os.path.join(base, content["path"]) for base in bases] + bases
    parts, by_folder = {}, _parts_by_folder(root)
    for role in ROLES:
        values: Any = next((content[key] for key in KEYS[role] if content.get(key)), [])
        values = [values] if isinstance(values, str) else values
        if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
            raise ValueError(f"{file}: {role}: expected a folder, a list file, or a list of them, got {values!r}"[:300])
        found = [_find(value, bases, root) for value in values]
        missing = [value for value, place in zip(values, found, strict=True) if place is None]
        files = [image for place in found if place is not None for image in _images_at(place, bases, root)]
        if missing and by_folder.get(role) and not files:
            files = by_folder[role]
            where = os.path.relpath(os.path.commonpath([os.path.dirname(image) for image in files]), root)
            notes.append(f"{file}: {role}: {missing[0]} is not there, {where} is taken")
        elif missing:
            notes.append(f"{file}: {role}: {missing[0]} is not there")
        if files:
            parts[role] = list(dict.fromkeys(files))
    shape = content.get("kpt_shape")
    keypoints = prod(shape) if isinstance(shape, list) and all(isinstance(n, int) for n in shape) else 0
    return Description(root, file, names, parts, keypoints, tuple(notes))


def _names(content: dict[str, Any], file: str) -> dict[int, str] | None:
    names = content.get("names")
    if names is None:
        return None
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        numbered = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{file}: names: expected a list, or names by number, got {names!r}"[:300]) from None
    return numbered


def _find(value: str, bases: Sequence[str], root: str) -> str | None:
    """Return where a path of a description is: as written, or as much of its end as there is in ``root``."""
    path = PurePath(value.replace("\\", "/"))
    if path.is_absolute() and os.path.exists(path):
        return str(path)
    written = [os.path.normpath(os.path.join(base, path)) for base in bases]
    inside = [place for place in written if not os.path.relpath(place, root).startswith("..")]
    parts = [part for part in path.parts if part not in ("..", ".", path.anchor)]
    ends = [
        os.path.join(root, *parts[first:])
        for first in range(len(parts))
        # What is cut off must not be what says which part of the dataset this is.
        if not any(map(role_of, parts[:first])) or any(map(role_of, parts[first:]))
    ]
    return next((place for place in [*inside, *ends, *written] if os.path.exists(place)), None)


def _images_at(place: str, bases: Sequence[str], root: str) -> list[str]:
    """Return the images in a folder, or those that a list names."""
    if os.path.isdir(place):
        return find_images([place])
    lines = [line for line in _lines(place) if not line.startswith("#")]
    own = os.path.dirname(place) or "."
    return [_find(line, [own, *bases], root) or os.path.normpath(os.path.join(own, line)) for line in lines]


def _lines(file: str) -> list[str]:
    """Return the lines of a text file that say something."""
    text = Path(file).read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


# --- no data.yaml ----------------------------------------------------------------------------------------------------


def _has_labels(root: str) -> bool:
    """Return whether there are label files in a folder: a number with coordinates in the first row of one."""
    for file in files_below(root, ".txt", DEPTH):
        with open(file, encoding="utf-8-sig", errors="replace") as opened:
            words = opened.readline().split()
        try:
            values = [float(word) for word in words]
        except ValueError:
            continue
        if len(values) >= 5 and values[0] == int(values[0]) and all(abs(value) <= 1.5 for value in values[1:]):
            return True
    return False


def _listed_parts(root: str) -> dict[str, list[str]]:
    """Return the images that ``train.txt``, ``val.txt`` and ``test.txt`` in a folder list."""
    parts = {}
    for role, keys in KEYS.items():
        lists = [os.path.join(root, f"{key}.txt") for key in keys]
        found = next((file for file in lists if os.path.isfile(file)), None)
        if found is not None:
            parts[role] = _images_at(found, [], root)
    return parts if "train" in parts else {}


def _parts_by_folder(root: str) -> dict[str, list[str]]:
    """Return the images of a folder by what the folders in it are called; all are to train on if that says nothing."""
    by_role = defaultdict(list)
    for image in find_images([root]):
        by_role[role_of_folder(os.path.dirname(image), root)].append(image)
    by_role.pop("unlabelled", None)
    if "train" not in by_role and None in by_role:
        by_role["train"] = by_role[None]
    return {role: by_role[role] for role in ROLES if role in by_role}

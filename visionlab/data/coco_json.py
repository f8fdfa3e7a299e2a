"""COCO json files: reading one, and mapping its categories to labels by name."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeGuard

from visionlab.data.problems import Problem
from visionlab.text import show

# A name is drawn beside its box, and written in every table.
LONGEST_NAME = 256


def read_coco(path: str) -> dict[str, Any]:
    """Return the content of a COCO json file whose images, annotations and categories are lists of objects.

    Raises:
        ValueError: if the file is missing, no json, or no COCO detection data.
    """
    try:
        with open(path, "rb") as file:
            content = json.load(file, object_pairs_hook=_unique)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a json file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no COCO data: expected an object, got {type(content).__name__}")
    for section in ("images", "annotations", "categories"):
        if not isinstance(content.get(section), list):
            got = ", ".join(list(content)[:8]) or "nothing"
            raise ValueError(f"{path}: no COCO data: expected a list {section!r}, got an object of {got}")
        for number, entry in enumerate(content[section]):
            if not isinstance(entry, dict):
                raise ValueError(f"{path}: {section}[{number}]: expected an object, got {type(entry).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a json, which must not say two things by one key."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        for key, value in pairs:
            if entry[key] != value:
                got = f"{show(value)} and {show(entry[key])}"
                raise ValueError(f"the key {show(key)} stands twice in one object: expected one value, got {got}")
    return entry


def map_categories(
    categories: Sequence[dict[str, Any]], classes: Sequence[str] | None, source: str
) -> tuple[list[str], list[int]]:
    """Return the class names in the order of labels and the category id of each.

    Args:
        categories: the entries of a COCO json.
        classes: the names to use, in the order of labels; all, in the order of ids, by default.
        source: the json, for messages.

    Raises:
        ValueError: if a category has no id or name, two share one, or a class is not among them.
    """
    ids: dict[str, int] = {}
    for category in categories:
        name, number = category.get("name"), category.get("id")
        if not isinstance(name, str) or not is_id(number):
            raise ValueError(f"{source}: category {show(category)}: expected a whole number as id and a text as name")
        if name in ids or number in ids.values():
            raise ValueError(f"{source}: category {name!r} with id {number}: the name or the id is taken already")
        ids[name] = number
    if not ids:
        raise ValueError(f"{source}: names no categories")
    if classes is None:
        classes = sorted(ids, key=lambda name: ids[name])
    check_classes(classes)
    for name in classes:
        if name in ids:
            _check_name(name, f"{source}: category {ids[name]}: name")
        else:
            folded = {known.casefold(): known for known in ids}
            near = difflib.get_close_matches(name.casefold(), folded, n=1)
            hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
            raise ValueError(
                f"{source}: no category is named {name!r}.{hint} It has: {', '.join(ids)}; `classes` names those to use"
            )
    return list(classes), [ids[name] for name in classes]


def _check_name(name: str, what: str) -> None:
    """Refuse a class name that pictures, pages and terminals cannot show."""
    if not name.strip():
        raise ValueError(f"{what}: expected text, got {show(name)}")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{what}: expected at most {LONGEST_NAME} characters, got {len(name)}: {show(name[:40])}…")
    if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise ValueError(f"{what}: expected text without control characters, got {show(name)}")


def similar_classes(classes: Sequence[str], source: str) -> list[Problem]:
    """Return a problem for each group of class names that differ by letters' case or space only."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        key = "".join(unicodedata.normalize("NFC", name).casefold().split())
        groups.setdefault(key, []).append(name)
    return [
        Problem(
            "similar-classes", source, f"differ by case or space only: {', '.join(map(show, names))}", action="kept"
        )
        for names in groups.values()
        if len(names) > 1
    ]


def check_classes(classes: Sequence[str]) -> None:
    """Refuse an empty choice of classes, and one that names a class twice."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice or not classes:
        raise ValueError(f"classes: expected different names, got {'none' if not classes else twice[0] + ' twice'}")


def is_id(value: object) -> TypeGuard[int]:
    """Return whether a value can be an id: a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)

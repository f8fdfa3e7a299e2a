"""COCO content in plain form: ids become whole numbers, boxes lists of numbers, whatever a json has them as.

What is written oddly is read if it can be read in one way only, and every kind of oddity is told in one line that
counts. What cannot be read stays as it is, for ``CocoCheck`` to name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from visionlab.data.annotations import is_number
from visionlab.data.coco_json import is_id
from visionlab.data.odd_values import outline_box, read_bbox, read_crowd, read_number, read_whole
from visionlab.data.problems import Policy, Problem
from visionlab.text import show

_PLAIN_NUMBERS = (int, float)


class Form(NamedTuple):
    """What a field of an entry should be, and how it is read where it is not."""

    expected: str
    is_plain: Callable[[Any], bool]
    read: Callable[[Any], Any]


_WHOLE = Form("a whole number", is_id, read_whole)
_NUMBER = Form("a number", lambda value: type(value) in _PLAIN_NUMBERS, read_number)
_CROWD = Form("0 or 1", lambda value: type(value) is int, read_crowd)
_IMAGE = {"id": _WHOLE, "width": _NUMBER, "height": _NUMBER}
_ANNOTATION = {"id": _WHOLE, "image_id": _WHOLE, "category_id": _WHOLE, "area": _NUMBER, "iscrowd": _CROWD}


@dataclass
class Oddities:
    """What was read though it is written oddly: how often, and the first of each kind.

    Args:
        source: the json, for messages.
        policy: under ``repair`` what was read is used.
        entries: ``id()`` of every annotation that was changed, to be left out under the policy ``skip``.
    """

    source: str
    policy: Policy
    entries: set[int] = field(default_factory=set)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _first: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def note(self, kind: str, what: str, got: str, done: str) -> None:
        """Count one oddity.

        Args:
            kind: a key of ``KINDS``.
            what: what is odd; those with the same words are counted together: "annotations: id: expected …".
            got: what stands there.
            done: what it was read as.
        """
        key = (kind, what)
        self._counts[key] = self._counts.get(key, 0) + 1
        self._first.setdefault(key, (got, done))

    def problems(self) -> list[Problem]:
        """Return one problem for each kind of oddity."""
        found = []
        for (kind, what), count in self._counts.items():
            got, done = self._first[kind, what]
            action = {"repair": done, "skip": "left out", "fail": ""}[self.policy]
            found.append(Problem(kind, self.source, f"{count} {what}, got {got}", action=action, count=count))
        return found


def plain_content(content: dict[str, Any], oddities: Oddities) -> dict[str, Any]:
    """Return COCO content with every id, number, box and flag in its plain form, where it can be read in one way only.

    Args:
        content: what ``read_coco`` returned; it is not changed.
        oddities: where each change is counted.
    """
    categories = _plain_categories(content["categories"], oddities)
    names = {entry.get("name"): entry.get("id") for entry in categories if isinstance(entry.get("name"), str)}
    listed = {number for number in names.values() if is_id(number)}

    def read_category(value: object) -> int | None:
        number, named = read_whole(value), names.get(value) if isinstance(value, str) else None
        if number in listed and is_id(named) and named != number:
            return None  # "1" is the id of one class and the name of another
        return named if is_id(named) else number

    numbers = _number_images(content)

    def read_image(value: object) -> int | None:
        return numbers[value] if isinstance(value, str) and value in numbers else read_whole(value)

    image_form = _WHOLE._replace(read=read_image)
    forms = {**_ANNOTATION, "image_id": image_form, "category_id": _WHOLE._replace(read=read_category)}
    return {
        **content,
        "images": [_plain_image(entry, {**_IMAGE, "id": image_form}, oddities) for entry in content["images"]],
        "annotations": [
            entry if _is_plain(entry) else _plain_annotation(entry, forms, oddities) for entry in content["annotations"]
        ],
        "categories": categories,
    }


def _plain_categories(entries: Iterable[dict[str, Any]], oddities: Oddities) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = []
    for entry in entries:
        changes = _changes(entry, "categories", {"id": _WHOLE}, oddities)
        if is_number(entry.get("name")):
            changes["name"] = str(entry["name"])
            oddities.note("odd-value", "categories: name: expected text", show(entry["name"]), "read as text")
        entry = {**entry, **changes} if changes else entry
        if any(other.get("id") == entry.get("id") and other.get("name") == entry.get("name") for other in plain):
            got = f"name {show(entry.get('name'))} with id {show(entry.get('id'))} twice"
            oddities.note("duplicate-category", "categories: expected each once", got, "counted once")
        else:
            plain.append(entry)
    return plain


def _number_images(content: dict[str, Any]) -> dict[str, int]:
    """Return a number for each image id that is a word, such as "a7f3-01", by which annotations speak of it."""
    words = {entry["id"] for entry in content["images"] if isinstance(entry.get("id"), str)}
    words &= {entry["image_id"] for entry in content["annotations"] if isinstance(entry.get("image_id"), str)}
    words = {word for word in words if read_whole(word) is None}
    if not words:
        return {}
    first = 1 + max((read_whole(entry.get("id")) or 0 for entry in content["images"]), default=0)
    return {word: number for number, word in enumerate(sorted(words), start=first)}


def _plain_image(entry: dict[str, Any], forms: dict[str, Form], oddities: Oddities) -> dict[str, Any]:
    if type(entry.get("id")) is int and not isinstance(entry.get("width"), str | list):
        return entry
    changes = _changes(entry, "images", forms, oddities)
    if not changes:
        return entry
    changed = {**entry, **changes}
    oddities.entries.add(id(changed))
    return changed


def _is_plain(entry: dict[str, Any]) -> bool:
    """Return whether an annotation has nothing to be read; official files have millions, so this is quick."""
    bbox, get = entry.get("bbox"), entry.get
    return (
        type(bbox) is list
        and len(bbox) == 4
        and type(bbox[0]) in _PLAIN_NUMBERS
        and type(bbox[1]) in _PLAIN_NUMBERS
        and type(bbox[2]) in _PLAIN_NUMBERS
        and type(bbox[3]) in _PLAIN_NUMBERS
        and type(get("image_id")) is int
        and type(get("category_id")) is int
        and type(get("id")) is int
        and type(get("iscrowd")) is int
        and type(get("area")) in _PLAIN_NUMBERS
    )


def _plain_annotation(entry: dict[str, Any], forms: dict[str, Form], oddities: Oddities) -> dict[str, Any]:
    changes = _changes(entry, "annotations", forms, oddities)
    bbox = entry.get("bbox")
    if bbox is None or bbox == []:
        box = outline_box(entry.get("segmentation"))
        if box is not None:
            changes["bbox"] = box
            what = "annotations: bbox: expected x, y, width, height"
            oddities.note("odd-box", what, "none", "taken from the outline in segmentation")
    elif not (isinstance(bbox, list) and len(bbox) == 4 and all(type(value) in _PLAIN_NUMBERS for value in bbox)):
        box = read_bbox(bbox)
        if box is not None:
            changes["bbox"] = box
            what = "annotations: bbox: expected a list of four numbers"
            oddities.note("odd-box", what, show(bbox), f"read as {show([_short(value) for value in box])}")
    if not changes:
        return entry
    changed = {**entry, **changes}
    oddities.entries.add(id(changed))
    return changed


def _changes(
    entry: dict[str, Any],
    section: str,
    fields: dict[str, Form],
    oddities: Oddities,
) -> dict[str, Any]:
    """Return the fields of an entry that are not as expected but can be read, with what they are read as."""
    changes = {}
    for name, (expected, is_plain, read) in fields.items():
        value = entry.get(name)
        if value is None or is_plain(value):
            continue
        plain = read(value)
        if plain is not None:
            changes[name] = plain
            what = f"{section}: {name}: expected {expected}"
            oddities.note("odd-value", what, show(value), f"read as {show(_short(plain))}")
    return changes


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value

"""Values of a COCO json that are written oddly, such as "1" for 1, and can be read in one way only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
from pycocotools import mask as rle

from visionlab.data.coco_json import is_id

_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(?:\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
_LARGEST = 1e15
# How tools name the four numbers of a box; the last two are a size in the first group and a corner in the second.
_SIZED = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))


def read_whole(value: object) -> int | None:
    """Return the whole number that a value states: 7 for 7, 7.0, "7" and "7.0"; None if it states none."""
    if is_id(value):
        return value
    if isinstance(value, float) and abs(value) < _LARGEST and value == int(value):
        return int(value)
    found = _WHOLE.fullmatch(value) if isinstance(value, str) and len(value) < 30 else None
    return int(found[1]) if found else None


def read_number(value: object) -> float | None:
    """Return the finite number that a value states: 2.5 for 2.5 and "2.5"; None if it states none."""
    if isinstance(value, str) and len(value) < 50 and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return None
    return value


def read_crowd(value: object) -> int | None:
    """Return the 0 or 1 that a value states: 1 for 1, 1.0, "1", true and "true"; None if it states neither."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.strip().casefold() in ("true", "false"):
        return int(value.strip().casefold() == "true")
    number = read_whole(value)
    return number if number in (0, 1) else None


def read_bbox(value: object) -> list[float] | None:
    """Return ``x, y, width, height`` of a box in any form in which it is clear which number is which, else None.

    Numbers may be text, the list may lie in another list, be text, such as "[24, 14, 28, 22]", or an object with the
    usual names of sizes or corners.
    """
    if isinstance(value, str) and len(value) < 300:
        value = [part for part in re.split(r"[\s,;]+", value.strip().strip("[]()").strip()) if part]
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list | dict):
        value = value[0]
    if isinstance(value, dict):
        return _named_box(value)
    if not isinstance(value, list) or len(value) != 4:
        return None
    return _numbers(value)


def _named_box(value: dict[str, Any]) -> list[float] | None:
    lower = {key.casefold(): number for key, number in value.items()}
    fits = [names for names in (*_SIZED, *_CORNERS) if all(name in lower for name in names)]
    if len(fits) != 1:
        return None
    numbers = _numbers([lower[name] for name in fits[0]])
    if numbers is None or fits[0] in _SIZED:
        return numbers
    x1, y1, x2, y2 = numbers
    return [x1, y1, x2 - x1, y2 - y1]


def _numbers(values: Sequence[object]) -> list[float] | None:
    numbers = [read_number(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def outline_box(segmentation: object) -> list[float] | None:
    """Return the box ``x, y, width, height`` around polygons or a run-length mask; None if they enclose nothing."""
    if isinstance(segmentation, dict):
        return _mask_box(segmentation)
    if not isinstance(segmentation, list):
        return None
    flat = bool(segmentation) and not any(isinstance(polygon, list) for polygon in segmentation)
    points: list[float] = []
    for polygon in [segmentation] if flat else segmentation:
        numbers = _numbers(polygon) if isinstance(polygon, list) else None
        if numbers is None or len(numbers) % 2:
            return None
        points += numbers
    if len(points) < 6:
        return None
    x, y = np.array(points).reshape(-1, 2).T
    box = [float(x.min()), float(y.min()), float(x.max() - x.min()), float(y.max() - y.min())]
    return box if box[2] > 0 and box[3] > 0 else None


def _mask_box(segmentation: dict[str, Any]) -> list[float] | None:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(is_id(n) and 0 < n < 1e5 for n in size)):
        return None
    try:
        mask = rle.frPyObjects(segmentation, *size) if isinstance(counts, list) else segmentation
        box = [float(number) for number in rle.toBbox(mask)]
    except Exception:  # pycocotools raises what its C code meets in counts that are none
        return None
    inside = all(map(isfinite, box)) and box[0] + box[2] <= size[1] and box[1] + box[3] <= size[0]
    return box if inside and box[2] > 0 and box[3] > 0 else None

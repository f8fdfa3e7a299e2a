"""Boxes and areas of a whole json that are in another form than COCO's: relative, by their center, by their corners.

One box alone rarely shows its form; all boxes of a json together do, by how they lie in their images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionlab.data.annotations import ROUNDING, is_number, read_box
from visionlab.data.coco_repair import Oddities
from visionlab.text import show

# So many boxes, or more, are evidence of a form.
EVIDENCE = 10
# How far relative boxes may leave 0..1.
_SLACK = 0.01

Entry = dict[str, Any]
Place = tuple[list[Entry], int]  # the annotations of an image, and which of them
Rows = NDArray[np.float64]


class Unread(NamedTuple):
    """What could not be turned into COCO's form.

    Args:
        corners: whether all boxes are evidently ``x1, y1, x2, y2``, in which case none was changed.
        relative: ``id()`` of the annotations whose relative boxes can be read in several ways or in none.
    """

    corners: bool
    relative: set[int]


def plain_boxes(groups: dict[int, list[Entry]], sizes: dict[int, tuple[int, int]], oddities: Oddities) -> Unread:
    """Turn relative boxes, center boxes and areas that fit no box into COCO's form, where only one form is possible.

    Args:
        groups: the annotations of each image; what is changed is exchanged in the lists.
        sizes: ``(height, width)`` of each image in pixels.
        oddities: where each change is counted.
    """
    places: list[Place] = []
    rows = []
    for number, entries in groups.items():
        height, width = sizes[number]
        for position, entry in enumerate(entries):
            box = read_box(entry.get("bbox"))
            if box is not None and entry["bbox"][2] > 0 and entry["bbox"][3] > 0:
                places.append((entries, position))
                rows.append((*box, width, height))
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    if not rows or _are_corners(table):
        return Unread(bool(rows), set())
    relative = _relative(table).nonzero()[0].tolist()
    form = _form_of_relative(table[relative]) if relative else None
    if form is not None:
        for index in relative:
            table[index, :4] = _relative_to_pixels(places[index], table[index], form, oddities)
    elif not relative and _are_centers(table):
        for index, place in enumerate(places):
            table[index, :4] = _center_to_corner(place, table[index], oddities)
    _fit_areas(places, table, oddities)
    unread = relative if form is None else ()
    return Unread(False, {id(places[index][0][places[index][1]]) for index in unread})


def _exchange(place: Place, oddities: Oddities, **changes: Any) -> None:
    entries, position = place
    changed = {**entries[position], **changes}
    oddities.entries.add(id(changed))
    entries[position] = changed


# ---- relative boxes


def _relative(table: Rows) -> NDArray[np.bool_]:
    """Return which boxes are relative: all that lie in 0..1, if all or many do.

    A box that lies in the first pixel of its image has no object in it, so even among boxes in pixels it can only be a
    relative one, unless its numbers are whole: [0, 0, 1, 1] is written for an image without a box.
    """
    boxes, sides = table[:, :4], table[:, 4:]
    unit = np.asarray(((boxes >= -_SLACK) & (boxes <= 1 + _SLACK)).all(1) & (sides > 2).all(1))
    return unit if unit.all() else np.asarray(unit & (boxes % 1 != 0).any(1))


def _form_of_relative(table: Rows) -> str | None:
    """Return the one form in which all relative boxes lie in their images, or None if several do, or none."""
    x, y, width, height = table[:, :4].T

    def lie_inside(left: Rows, top: Rows, right: Rows, bottom: Rows) -> bool:
        least, most = min(left.min(), top.min()), max(right.max(), bottom.max())
        return bool(least >= -_SLACK and most <= 1 + _SLACK and (right > left).all() and (bottom > top).all())

    forms = {
        "x, y, width, height": lie_inside(x, y, x + width, y + height),
        "center x, center y, width, height": lie_inside(x - width / 2, y - height / 2, x + width / 2, y + height / 2),
        "x1, y1, x2, y2": lie_inside(x, y, width, height),
    }
    fits = [form for form, fit in forms.items() if fit]
    return fits[0] if len(fits) == 1 else None


def _relative_to_pixels(place: Place, row: Rows, form: str, oddities: Oddities) -> list[float]:
    entry = place[0][place[1]]
    x, y, width, height = row[:4]
    if form.startswith("center"):
        x, y = x - width / 2, y - height / 2
    elif form.startswith("x1"):
        width, height = width - x, height - y
    box = [round(float(value), 4) for value in (x * row[4], y * row[5], width * row[4], height * row[5])]
    what = f"annotations: bbox: expected pixels, not {form} in 0..1 of the image's size"
    oddities.note("relative-box", what, show(entry["bbox"]), f"read as {show(box)}")
    area = entry.get("area")
    own = {"area": box[2] * box[3]} if is_number(area) and 0 < area <= 1 else {}
    _exchange(place, oddities, bbox=box, **own)
    return box


# ---- boxes by their center, boxes by their corners


def _are_centers(table: Rows) -> bool:
    """Return whether boxes are evidently ``center x, center y, width, height`` in pixels.

    All of at least ten fit into their images so, a tenth of them do not as COCO boxes, and a fifth do not as corners.
    """
    x, y, width, height, image_width, image_height = table.T
    fit = (
        (x - width / 2 >= -ROUNDING)
        & (y - height / 2 >= -ROUNDING)
        & (x + width / 2 <= image_width + ROUNDING)
        & (y + height / 2 <= image_height + ROUNDING)
    )
    leave = (x + width > image_width + ROUNDING) | (y + height > image_height + ROUNDING)
    evident = len(table) >= EVIDENCE and bool(fit.all()) and float(leave.mean()) >= 0.1
    return evident and float(_fit_as_corners(table).mean()) < 0.8


def _center_to_corner(place: Place, row: Rows, oddities: Oddities) -> list[float]:
    x, y, width, height = row[:4].tolist()
    box = [round(x - width / 2, 4), round(y - height / 2, 4), width, height]
    what = "annotations: bbox: expected x, y, width, height, not center x, center y, width, height"
    oddities.note("center-box", what, show(place[0][place[1]]["bbox"]), f"read as {show(box)}")
    _exchange(place, oddities, bbox=box)
    return box


def _are_corners(table: Rows) -> bool:
    """Return whether boxes are evidently ``x1, y1, x2, y2``, where COCO has width and height.

    At least ten boxes, all of which fit into their images as corners and half of which do not as COCO boxes, are taken
    as evidence.
    """
    x, y, box_width, box_height, width, height = table.T
    leave = (x + box_width > width + ROUNDING) | (y + box_height > height + ROUNDING)
    fit = _fit_as_corners(table)
    return len(table) >= EVIDENCE and bool(fit.all()) and 2 * int(leave.sum()) >= len(table)


def _fit_as_corners(table: Rows) -> NDArray[np.bool_]:
    x1, y1, x2, y2, width, height = table.T
    inside = (x1 >= -ROUNDING) & (y1 >= -ROUNDING) & (x2 <= width + ROUNDING) & (y2 <= height + ROUNDING)
    fit: NDArray[np.bool_] = inside & (x1 < x2) & (y1 < y2)
    return fit


# ---- areas


def _fit_areas(places: list[Place], table: Rows, oddities: Oddities) -> None:
    """Exchange areas that cannot be those of their objects: all the same, larger than the box, or relative."""
    areas = np.zeros(len(places))
    for index, (entries, position) in enumerate(places):
        area = entries[position].get("area")
        if is_number(area) and area > 0:
            areas[index] = area
    stated = areas > 0
    boxes = table[:, 2] * table[:, 3]
    odd = stated & (areas > 1.5 * (table[:, 2] + 1) * (table[:, 3] + 1))
    small = stated & (areas <= 1) & (boxes >= 100)
    if 2 * small.sum() > stated.sum():
        odd |= small
    if stated.sum() > 2 and np.ptp(areas[stated]) == 0 and boxes[stated].max() > 1.5 * boxes[stated].min():
        odd |= stated
    what = f"of {int(stated.sum())} annotations: area: expected about width x height of the box, or less"
    for index in odd.nonzero()[0].tolist():
        entry = places[index][0][places[index][1]]
        got = f"{show(entry['area'])} for bbox {show(entry['bbox'])}"
        oddities.note("odd-area", what, got, "width x height taken")
        _exchange(places[index], oddities, area=entry["bbox"][2] * entry["bbox"][3])

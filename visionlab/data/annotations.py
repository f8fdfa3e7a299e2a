"""One COCO annotation: its box in the image, and every fault it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from visionlab.data.coco_json import is_id
from visionlab.text import show

# Official boxes leave their image by up to a hundredth of a pixel, and rounding to whole pixels by half a pixel.
ROUNDING = 0.5
# COCO writes hundredths of a pixel; a narrower box has no area, and none at all in float32.
MIN_BOX_SIDE = 0.01

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class AnnotationFault:
    """One fault of an annotation and what repairs it; nothing does where ``repair`` is empty."""

    kind: str
    detail: str
    repair: str = ""


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value from a json file is a finite number, and not beyond all sense."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def read_box(bbox: object) -> Box | None:
    """Return COCO's ``[x, y, width, height]`` with its corners in order, or None if it is not four finite numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    x, y, width, height = bbox
    if not (is_number(x) and is_number(y) and is_number(width) and is_number(height)):
        return None
    if width < 0:
        x, width = x + width, -width
    if height < 0:
        y, height = y + height, -height
    return float(x), float(y), float(width), float(height)


def clip_box(box: Box, size: tuple[int, int]) -> Box:
    """Return the corners ``x1, y1, x2, y2`` of an ``x, y, width, height`` box, moved into the image."""
    x, y, width, height = box
    return (
        min(max(x, 0.0), size[1]),
        min(max(y, 0.0), size[0]),
        min(max(x + width, 0.0), size[1]),
        min(max(y + height, 0.0), size[0]),
    )


def box_faults(bbox: Any, size: tuple[int, int]) -> list[AnnotationFault]:
    """Return the faults of a COCO box in an image of ``(height, width)``."""
    box = read_box(bbox)
    if box is None:
        return [AnnotationFault("invalid-box", f"bbox: expected four finite numbers, got {show(bbox)}")]
    x, y, width, height = box
    faults = []
    if bbox[2] < 0 or bbox[3] < 0:
        faults.append(AnnotationFault("negative-box", f"bbox {bbox}", "corners put in order"))
    if width < MIN_BOX_SIDE or height < MIN_BOX_SIDE:
        return [*faults, AnnotationFault("zero-box", f"bbox {bbox}")]
    x1, y1, x2, y2 = clip_box(box, size)
    if x2 - x1 < MIN_BOX_SIDE or y2 - y1 < MIN_BOX_SIDE:
        faults.append(AnnotationFault("outside-box", f"bbox {bbox} has no part in the image of {size[1]} x {size[0]}"))
    elif max(-x, -y, x + width - size[1], y + height - size[0]) > ROUNDING:
        faults.append(
            AnnotationFault("outside-box", f"bbox {bbox} leaves the image of {size[1]} x {size[0]}", "clipped")
        )
    return faults


def annotation_faults(
    entry: dict[str, Any], size: tuple[int, int], taken: set[str], *, unclear: bool = False
) -> list[AnnotationFault]:
    """Return the faults of an annotation whose image and category are known.

    Args:
        entry: the annotation as the json has it.
        size: ``(height, width)`` of its image.
        taken: the ids of other annotations, as text.
        unclear: whether the box is relative to the image's size in a form that nothing tells.
    """
    number, bbox = entry.get("id"), entry.get("bbox")
    faults = box_faults(bbox, size)
    if unclear:
        detail = f"bbox: expected pixels, got {bbox} in 0..1; size or corner, corner or center: several readings fit"
        faults = [AnnotationFault("relative-box", detail)]
    if not is_id(number) or str(number) in taken:
        state = "is taken" if is_id(number) else "is no whole number"
        faults.append(
            AnnotationFault("duplicate-annotation-id", f"id {number!r} of bbox {bbox} {state}", "numbered anew")
        )
    area, unusable = entry.get("area"), ("invalid-box", "zero-box")
    if area is not None and not (is_number(area) and area > 0) and not any(fault.kind in unusable for fault in faults):
        faults.append(AnnotationFault("zero-area", f"area {area!r} of bbox {bbox}", "width x height taken"))
    if entry.get("iscrowd") not in (None, 0, 1):
        faults.append(AnnotationFault("invalid-crowd", f"iscrowd: expected 0 or 1, got {show(entry['iscrowd'])}"))
    return faults


def truth_entry(entry: dict[str, Any], box: Box, image_id: int) -> dict[str, Any]:
    """Return an annotation as evaluation needs it: its own box, area and iscrowd filled in, polygons left behind."""
    crowd = is_crowd(entry)
    kept = {key: value for key, value in entry.items() if crowd or key != "segmentation"}
    area = entry.get("area")
    if not (is_number(area) and area > 0):
        area = box[2] * box[3]
    return {**kept, "image_id": image_id, "bbox": list(box), "area": area, "iscrowd": int(crowd)}


def is_crowd(entry: dict[str, Any]) -> bool:
    """Return whether an annotation is a crowd region; one that does not say is none."""
    return entry.get("iscrowd") == 1

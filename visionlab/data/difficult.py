"""What training makes of objects that are marked difficult, as Pascal VOC marks those that are hard to recognize."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from visionlab.data.annotated import AnnotatedPart

Difficult = Literal["use", "ignore", "remove"]


def without_difficult(part: AnnotatedPart, how: Difficult) -> AnnotatedPart:
    """Return a part whose difficult objects are no objects to learn, and a note that counts them.

    Args:
        part: what is trained on.
        how: ``use`` leaves them objects; ``ignore`` makes them crowd regions, neither objects nor background;
            ``remove`` leaves their place to the background.

    Raises:
        ValueError: no other object is left.
    """
    annotations = part.content["annotations"]
    count = sum(bool(entry.get("difficult")) for entry in annotations)
    if how == "use" or not count:
        return part
    if count == len(annotations):
        raise ValueError(f"difficult: expected use, as all {count} objects to train on are marked difficult, got {how}")
    if how == "ignore":
        changed = [{**entry, "iscrowd": 1} if entry.get("difficult") else entry for entry in annotations]
        what = "neither objects nor background"
    else:
        changed = [entry for entry in annotations if not entry.get("difficult")]
        what = "background"
    note = f"difficult: {how}: {count} of {len(annotations)} objects to train on are {what}"
    return replace(part, content={**part.content, "annotations": changed}, notes=(*part.notes, note))

"""The images and annotations of a COCO json, checked one by one: what is sound, what was mended, what is left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from visionlab.data.annotations import (
    Box,
    annotation_faults,
    are_corners,
    clip_box,
    is_crowd,
    is_number,
    read_box,
    truth_entry,
)
from visionlab.data.coco_json import is_id, map_categories
from visionlab.data.images import ImageError, file_problem, read_image_sizes
from visionlab.data.problems import Policy, Problem


@dataclass
class CheckedImage:
    """One image of a COCO json, with what can be used of its annotations.

    Args:
        id: the image's id.
        file: the path of its file.
        entry: the image as the json has it.
        size: ``(height, width)`` of the upright pixels; as the json states it until the file was read, or None.
        turned: whether the json states width and height the other way round than the file.
        usable: false once the image is left out.
        boxes: sound or mended boxes, inside the image, ``x1, y1, x2, y2`` in pixels.
        categories: the category id of each box.
        crowd: whether each box is a crowd region.
        difficult: whether each box is marked as hard to recognize, as VOC does.
        truth: the annotations that count in evaluation, where what a policy does to boxes is not done.
    """

    id: int
    file: str
    entry: dict[str, Any]
    size: tuple[int, int] | None
    turned: bool = False
    usable: bool = True
    boxes: list[Box] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)


class CocoCheck:
    """Everything that is wrong with a COCO json and its images, and what remains of them.

    Args:
        content: what ``read_coco`` returned.
        source: the json, for messages.
        folder: where the image files lie.
        classes: the category names to use, in the order of labels; by default all, in the order of their ids.
            Annotations of other categories that the json lists are passed over.
        policy: under ``repair`` mended images and annotations remain, else faultless ones only.
        check_files: read the header of every image file, else only of those whose size the json does not state.
        role: what the json is for, "training" or "validation", for messages; may be empty.

    Raises:
        ValueError: if a category has no id or name, two share one, or a class is not among them.
    """

    def __init__(
        self,
        content: dict[str, Any],
        *,
        source: str,
        folder: str,
        classes: Sequence[str] | None = None,
        policy: Policy,
        check_files: bool,
        role: str = "",
    ) -> None:
        self.content, self.source, self.policy, self.role = content, source, policy, role
        self.classes, self.category_ids = map_categories(content["categories"], classes, source)
        self._left_out = "" if policy == "fail" else "left out"  # what is done where nothing is mended
        self.problems: list[Problem] = []
        self._images: dict[int, CheckedImage] = {}
        self._same: dict[int, int] = {}  # id of an image -> id under which the same file was listed before
        self._list_images(content["images"], folder)
        self._read_sizes(check_files)
        groups = self._group(content["annotations"], {c["id"] for c in content["categories"]}, set(self.category_ids))
        sizes = {number: image.size for number, image in self._images.items() if image.size is not None}
        if are_corners((entry.get("bbox"), sizes[number]) for number in groups for entry in groups[number]):
            detail = "boxes fit their images as x1, y1, x2, y2 but not as COCO's x, y, width, height; convert them"
            self.problems.append(Problem("corner-boxes", source, detail))
        self._taken: set[str] = set()
        for number, entries in groups.items():
            self._check_annotations(self._images[number], entries)

    @property
    def images(self) -> list[CheckedImage]:
        """The images that remain, in the order of the json."""
        return [image for image in self._images.values() if image.usable]

    def _note(self, kind: str, image: CheckedImage, detail: str, repair: str = "", annotation: Any = None) -> bool:
        """Keep a problem; return whether what it concerns remains, because the policy is to repair and that can be."""
        mended = bool(repair) and self.policy == "repair"
        action = repair if mended else self._left_out
        self.problems.append(Problem(kind, image.file, detail, image.id, annotation, action))
        return mended

    # ---- images

    def _list_images(self, entries: list[dict[str, Any]], folder: str) -> None:
        by_file: dict[str, CheckedImage] = {}
        for position, entry in enumerate(entries):
            number, name = entry.get("id"), entry.get("file_name")
            if not is_id(number) or not isinstance(name, str) or not name:
                detail = f"images[{position}] has id {number!r} and file_name {name!r}"
                self.problems.append(Problem("bad-image-entry", self.source, detail, action=self._left_out))
                continue
            image = CheckedImage(number, os.path.join(folder, name), entry, _stated_size(entry))
            other, twin = self._images.get(number), by_file.get(image.file)
            if other is not None and other is twin:
                self._note("duplicate-image-id", image, f"id {number} is listed twice with this file", "counted once")
            elif other is not None:
                self._note(
                    "duplicate-image-id", image, f"id {number} is that of {other.file} too; whose are the boxes?"
                )
                other.usable = False
            elif twin is not None:
                joined = self._note("duplicate-image", image, f"is image {twin.id} too", f"joined with {twin.id}")
                if joined:
                    self._same[number] = twin.id
                else:
                    image.usable = False
                    self._images[number] = image
            else:
                self._images[number] = by_file[image.file] = image

    def _read_sizes(self, check_files: bool) -> None:
        wanted = [image for image in self.images if check_files or image.size is None]
        for image, size in zip(wanted, read_image_sizes([image.file for image in wanted]), strict=True):
            if isinstance(size, ImageError):
                self.problems.append(file_problem(image.file, size, image_id=image.id, action=self._left_out))
                image.usable = False
                continue
            stated, image.size = image.size or size, size
            if abs(stated[0] - size[0]) <= 1 and abs(stated[1] - size[1]) <= 1:
                continue
            image.turned = stated == size[::-1]
            detail = f"the json says {stated[1]} x {stated[0]}, the file has {size[1]} x {size[0]}"
            repair = "the file's size taken" if image.turned else ""
            image.usable = self._note("image-size", image, detail + (" once upright" if image.turned else ""), repair)

    # ---- annotations

    def _group(
        self, entries: list[dict[str, Any]], known: set[int], wanted: set[int]
    ) -> dict[int, list[dict[str, Any]]]:
        """Return the wanted annotations of each usable image."""
        groups: dict[int, list[dict[str, Any]]] = {image.id: [] for image in self.images}
        for entry in entries:
            number, category = entry.get("image_id"), entry.get("category_id")
            image = self._images.get(self._same.get(number, number)) if is_id(number) else None
            if image is None:
                detail, row = f"image_id {number!r} is not listed", entry.get("id")
                self.problems.append(Problem("unknown-image", self.source, detail, None, row, self._left_out))
            elif not is_id(category) or category not in known:
                self._note("unknown-category", image, f"category_id {category!r} is not listed", "", entry.get("id"))
            elif image.usable and category in wanted:
                groups[image.id].append(entry)
        return groups

    def _check_annotations(self, image: CheckedImage, entries: list[dict[str, Any]]) -> None:
        assert image.size is not None
        found = []
        for entry in entries:
            found.append(annotation_faults(entry, image.size, self._taken))
            self._taken.add(str(entry.get("id")))
        if image.turned and any(fault.kind == "outside-box" for faults in found for fault in faults):
            self._note("image-size", image, "its boxes do not fit the upright image")
            image.usable = False
            return
        for entry, faults in zip(entries, found, strict=True):
            remains = [self._note(f.kind, image, f.detail, f.repair, entry.get("id")) for f in faults]
            box = read_box(entry.get("bbox"))
            if box is not None:
                image.truth.append(truth_entry(entry, box, image.id))
            if box is not None and all(remains):
                image.boxes.append(clip_box(box, image.size))
                image.categories.append(entry["category_id"])
                image.crowd.append(is_crowd(entry))
                image.difficult.append(entry.get("difficult") in (1, "1"))


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return ``(height, width)`` as an image's entry states it, or None if it does not."""
    height, width = entry.get("height"), entry.get("width")
    if is_number(height) and is_number(width) and height >= 1 and width >= 1:
        return int(height), int(width)
    return None

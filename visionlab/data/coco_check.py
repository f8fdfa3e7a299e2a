"""The images and annotations of a COCO json, checked one by one: what is sound, what was mended, what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from visionlab.data.annotations import (
    Box,
    annotation_faults,
    clip_box,
    is_crowd,
    is_number,
    read_box,
    truth_entry,
)
from visionlab.data.box_forms import plain_boxes
from visionlab.data.coco_json import is_id, map_categories, similar_classes
from visionlab.data.coco_repair import Oddities, plain_content
from visionlab.data.file_names import FileNames
from visionlab.data.images import ImageError, file_problem, read_image_sizes
from visionlab.data.problems import Policy, Problem
from visionlab.text import printable, show


@dataclass
class CheckedImage:
    """One image of a COCO json, with what can be used of its annotations.

    Args:
        id: the image's id.
        file: the path of its file.
        entry: the image as the json has it.
        size: ``(height, width)`` of the upright pixels; as the json states it until the file was read, or None.
        turned: whether the json states width and height the other way round than the file.
        fault: the kind of fault that the image is left out for; empty while it is not.
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
    fault: str = ""
    boxes: list[Box] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether the image remains."""
        return not self.fault


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
        self.source, self.policy = source, policy
        self._left_out = "" if policy == "fail" else "left out"  # what is done where nothing is mended
        self._odd = Oddities(source, policy)
        self.content = content = plain_content(content, self._odd)
        self.classes, self.category_ids = map_categories(content["categories"], classes, source)
        self.problems: list[Problem] = similar_classes(self.classes, source)
        self._images: dict[int, CheckedImage] = {}
        self._same: dict[int, int] = {}  # id of an image -> id under which the same file was listed before
        self._lost: Counter[str] = Counter()  # kind of fault -> annotations that no image has for it
        listed = self._list_images(content["images"])
        self._read_sizes(listed, FileNames(folder), check_files)
        self._join(listed)
        groups = self._group(content["annotations"], {c["id"] for c in content["categories"]}, set(self.category_ids))
        sizes = {number: image.size for number, image in self._images.items() if image.size is not None}
        unread = plain_boxes(groups, sizes, self._odd)
        if unread.corners:
            detail = "boxes fit their images as x1, y1, x2, y2 but not as COCO's x, y, width, height; convert them"
            self.problems.append(Problem("corner-boxes", source, detail))
        self._unclear = unread.relative
        self._taken: set[str] = set()
        for number, entries in groups.items():
            self._check_annotations(self._images[number], entries)
        self.problems[:0] = self._odd.problems()
        self._count_losses(role)

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

    def _list_images(self, entries: list[dict[str, Any]]) -> list[CheckedImage]:
        """Return the entries that have an id and a file name."""
        listed = []
        for position, entry in enumerate(entries):
            number, name = entry.get("id"), entry.get("file_name")
            if is_id(number) and isinstance(name, str) and name.strip():
                image = CheckedImage(number, name, entry, _stated_size(entry))
                if self.policy == "skip" and id(entry) in self._odd.entries:
                    image.fault = "odd-value"
                listed.append(image)
            else:
                detail = f"images[{position}] has id {number!r} and file_name {name!r}"
                self.problems.append(Problem("bad-image-entry", self.source, detail, action=self._left_out))
        return listed

    def _read_sizes(self, listed: list[CheckedImage], names: FileNames, check_files: bool) -> None:
        """Find the file of each image, and compare its size with the one that the json states."""
        stated: dict[str, set[tuple[int, int] | None]] = {}
        for image in listed:
            path = names.plain_path(image.entry["file_name"])
            image.file = path or image.entry["file_name"]
            if path and not names.leads_outside(path):
                stated.setdefault(path, set()).add(image.size)
        wanted = [path for path, sizes in stated.items() if check_files or None in sizes or len(sizes) > 1]
        sizes = dict(zip(wanted, read_image_sizes(wanted), strict=True))
        missing = {path for path, size in sizes.items() if isinstance(size, ImageError) and not os.path.exists(path)}
        odd = [image for image in listed if image.file not in stated or image.file in missing]
        if odd:
            known = [image.entry["file_name"] for image in listed if image.file in stated and image.file not in missing]
            found = self._locate(odd, known, len(listed), names)
            sizes |= dict(zip(found, read_image_sizes(found), strict=True))
        for image in listed:
            if not image.fault and image.file in sizes:
                self._compare_size(image, sizes[image.file])

    def _locate(self, odd: list[CheckedImage], known: list[str], total: int, names: FileNames) -> list[str]:
        """Look for the files of images whose names do not match any; return those that were found."""
        places = names.locate_all([image.entry["file_name"] for image in odd], known)
        missing = []
        for image in odd:
            name = image.entry["file_name"]
            place = places[name]
            if place.path:
                image.file = place.path
                if place.rules:
                    what = f"images: file_name: expected a file in {names.root}"
                    file = os.path.relpath(place.path, names.root)
                    self._odd.note("file-name", f"{what} ({place.rules})", show(name), f"{printable(file)} used")
                    image.fault = "file-name" if self.policy == "skip" else ""
            else:
                image.fault = place.fault
                if place.fault == "missing-file":
                    missing.append(image)
                else:
                    self._note(place.fault, image, place.detail)
        if len(missing) > 3 and 2 * len(missing) > total:
            detail = f"{len(missing)} of {total} files are missing: is images={names.root} the right folder?"
            first = missing[0].entry["file_name"]
            detail += f" The first: {show(first)}{names.nearest(first)}"
            count = len(missing)
            self.problems.append(Problem("missing-file", self.source, detail, action=self._left_out, count=count))
        else:
            for position, image in enumerate(missing):
                hint = names.nearest(image.entry["file_name"]) if position < 3 else ""
                self._note("missing-file", image, f"no such file{hint}")
        return list(dict.fromkeys(image.file for image in odd if not image.fault))

    def _compare_size(self, image: CheckedImage, size: tuple[int, int] | ImageError) -> None:
        if isinstance(size, ImageError):
            self.problems.append(file_problem(image.file, size, image_id=image.id, action=self._left_out))
            image.fault = "unreadable-file"
            return
        stated, image.size = image.size or size, size
        if abs(stated[0] - size[0]) <= 1 and abs(stated[1] - size[1]) <= 1:
            return
        image.turned = stated == size[::-1]
        detail = f"the json says {stated[1]} x {stated[0]}, the file has {size[1]} x {size[0]}"
        repair = "the file's size taken" if image.turned else ""
        if not self._note("image-size", image, detail + (" once upright" if image.turned else ""), repair):
            image.fault = "image-size"

    def _join(self, listed: list[CheckedImage]) -> None:
        """Keep one image for each id and for each file."""
        by_file: dict[str, CheckedImage] = {}
        for image in listed:
            other, twin = self._images.get(image.id), by_file.get(image.file) if image.usable else None
            if other is not None and other.file == image.file and other.fault == image.fault:
                text = f"id {image.id} is listed twice with this file"
                self._note("duplicate-image-id", image, text, "counted once")
            elif other is not None:
                text = f"id {image.id} is that of {other.file} too; whose are the boxes?"
                self._note("duplicate-image-id", image, text)
                other.fault = "duplicate-image-id"
            elif twin is not None and self._note(
                "duplicate-image", image, f"is image {twin.id} too", f"joined with {twin.id}"
            ):
                self._same[image.id] = twin.id
            else:
                self._images[image.id] = image
                if twin is not None:
                    image.fault = "duplicate-image"
                elif image.usable:
                    by_file[image.file] = image

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
                detail, row = f"image_id: expected the id of an image, got {show(number)}", entry.get("id")
                self.problems.append(Problem("unknown-image", self.source, detail, None, row, self._left_out))
                self._lost["unknown-image"] += 1
            elif not is_id(category) or category not in known:
                detail = f"category_id: expected the id of a category, got {show(category)}"
                self._note("unknown-category", image, detail, "", entry.get("id"))
                self._lost["unknown-category"] += 1
            elif category in wanted and image.usable:
                groups[image.id].append(entry)
            elif category in wanted:
                self._lost[image.fault] += 1
        return groups

    def _check_annotations(self, image: CheckedImage, entries: list[dict[str, Any]]) -> None:
        assert image.size is not None
        found = []
        for entry in entries:
            found.append(annotation_faults(entry, image.size, self._taken, unclear=id(entry) in self._unclear))
            self._taken.add(str(entry.get("id")))
        if image.turned and any(fault.kind == "outside-box" for faults in found for fault in faults):
            self._note("image-size", image, "its boxes do not fit the upright image")
            image.fault = "image-size"
            self._lost["image-size"] += len(entries)
            return
        for entry, faults in zip(entries, found, strict=True):
            remains = [self._note(f.kind, image, f.detail, f.repair, entry.get("id")) for f in faults]
            box = read_box(entry.get("bbox"))
            if box is not None:
                image.truth.append(truth_entry(entry, box, image.id))
            odd = self.policy == "skip" and id(entry) in self._odd.entries
            if box is not None and all(remains) and not odd:
                image.boxes.append(clip_box(box, image.size))
                image.categories.append(entry["category_id"])
                image.crowd.append(is_crowd(entry))
                image.difficult.append(bool(entry.get("difficult")))
            else:
                self._lost[faults[0].kind if faults else "odd-value"] += 1

    def _count_losses(self, role: str) -> None:
        """Keep a problem if most of the annotations would be lost."""
        lost = self._lost.total()
        total = lost + sum(len(image.boxes) for image in self.images)
        if 2 * lost > total and self.policy != "fail":
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._lost.most_common())
            main = self._lost.most_common(1)[0][0]
            first = next((f"; the first: {problem}" for problem in self.problems if problem.kind == main), "")
            what = f"{role} annotations" if role else "annotations"
            detail = f"{lost} of {total} {what} would be lost: {kinds}{first}"
            self.problems.append(Problem("annotations-lost", self.source, detail))


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return ``(height, width)`` as an image's entry states it, or None if it does not."""
    height, width = entry.get("height"), entry.get("width")
    if is_number(height) and is_number(width) and height >= 1 and width >= 1:
        return int(height), int(width)
    return None

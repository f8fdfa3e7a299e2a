"""Labelled images: content in COCO's form and the folder of its images, as training and evaluation need them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionlab.data.annotated import AnnotatedPart
from visionlab.data.coco_check import CheckedImage, CocoCheck
from visionlab.data.coco_json import is_id, read_coco
from visionlab.data.images import ImageError, read_image_by_policy
from visionlab.data.problems import FATAL, Policy, Problem, fail_on, summarize
from visionlab.data.selection import LabelSelection, Selection
from visionlab.data.split import choose
from visionlab.settings import flat_settings


@dataclass(frozen=True)
class Record:
    """One image and its labelled objects, in pixels of the upright image.

    Args:
        file: the path of the image.
        image_id: its id in the json.
        height: rows of pixels.
        width: columns of pixels.
        boxes: ``(N, 4)`` float32, ``x1, y1, x2, y2``, inside the image and never without area.
        labels: ``(N,)`` int64, indices into the dataset's ``classes``.
        crowd: ``(N,)`` bool.
        difficult: ``(N,)`` bool, what VOC marks as hard to recognize; never set in COCO json.
    """

    file: str
    image_id: int
    height: int
    width: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]


class CocoDataset:
    """The images of a COCO json, or of other content in its form, with their boxes.

    Official files are read unchanged: ids with gaps, crowd regions, polygons, RLE, images without annotations. Every
    fault is named in ``problems`` and handled by ``policy``; ``visionlab.data.problems.KINDS`` says what the faults are
    and what ``repair`` does about each. Missing sizes, areas and iscrowd are filled in and no fault.

    ``ground_truth`` is the json for evaluation, and the same under every policy but for images that are left out: its
    boxes are not clipped, and a box without area counts as it does in the official evaluation.

    A training loader uses ``records[i]`` (sizes for grouping by aspect, before anything is decoded) and ``load(i)``.
    Evaluation hands ``ground_truth`` to pycocotools and turns label ``k`` into ``category_ids[k]``.

    Args:
        part: what a source read; give either this or a json with the folder of its images.
        annotations: the COCO json.
        images: the folder that the json's file names start from.
        labels: which classes are used, and whether images without a box are.
        selection: which images are used, and what is done with faulty ones.
        check_files: read every image's header first (below a millisecond each) to find missing files and wrong sizes;
            without it such faults show when images are loaded.
        role: what the images are for, "training" or "validation", for messages.

    Raises:
        ValueError: if the json is none, a class is not in it, no image remains, boxes are evidently written as corners,
            or, under the policy ``fail``, anything is at fault.
    """

    source: str
    images: str
    classes: list[str]
    category_ids: list[int]
    records: list[Record]
    problems: list[Problem]
    policy: Policy
    ground_truth: dict[str, Any]

    @flat_settings
    def __init__(
        self,
        part: AnnotatedPart | None = None,
        *,
        annotations: str | None = None,
        images: str | None = None,
        labels: LabelSelection,
        selection: Selection,
        check_files: bool = True,
        role: str = "",
    ) -> None:
        if part is None:
            if annotations is None or images is None:
                raise ValueError("expected the content of a dataset, or annotations and images, got neither")
            part = AnnotatedPart(read_coco(annotations), images, annotations)
        elif annotations is not None or images is not None:
            raise ValueError("expected the content of a dataset, or annotations and images, got both")
        source, policy = part.source, selection.policy
        self.source, self.images, self.policy = source, part.images, policy
        check = CocoCheck(
            part.content,
            source=source,
            folder=part.images,
            classes=labels.classes,
            policy=policy,
            check_files=check_files,
            role=role,
        )
        self.classes, self.category_ids = check.classes, check.category_ids
        self.problems = [*part.problems, *map(part.placed, check.problems)]
        fatal = [problem for problem in self.problems if problem.kind in FATAL]
        fail_on(self.problems if policy == "fail" else [p for p in fatal if p.kind == "corner-boxes"], source)
        chosen = [image for image in check.images if labels.keep_empty or image.boxes]
        if not chosen:
            why = summarize(self.problems) or "no image has a box of these classes"
            first = f"; the first: {self.problems[0]}" if self.problems else ""
            count = len(check.content["images"])
            raise ValueError(f"{source} with {part.images}: none of {count} images remains: {why}{first}")
        if fatal:
            raise ValueError(str(fatal[0]))
        if selection.limit is not None:
            chosen = choose(chosen, selection.limit, key=lambda image: image.entry["file_name"])
        self.records = [_record(image, self.category_ids) for image in chosen]
        self.ground_truth = _ground_truth(check.content, chosen, self.category_ids)

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int) -> tuple[NDArray[np.uint8], Record]:
        """Return the ``(height, width, 3)`` uint8 RGB pixels of one image, and its record.

        Raises:
            ImageError: if the file gives no pixels, or not as many as its record says. Who loads batches decides by
                ``policy``: stop under ``fail``, else report the message and take the next image that loads.
        """
        record = self.records[index]
        pixels = read_image_by_policy(record.file, self.policy)
        height, width = pixels.shape[:2]
        if (height, width) != (record.height, record.width):
            stated = f"{record.width} x {record.height}"
            raise ImageError(f"{record.file}: expected {stated} pixels as the json says, got {width} x {height}")
        return pixels, record


def _record(image: CheckedImage, category_ids: Sequence[int]) -> Record:
    assert image.size is not None
    labels = {number: label for label, number in enumerate(category_ids)}
    return Record(
        file=image.file,
        image_id=image.id,
        height=image.size[0],
        width=image.size[1],
        boxes=np.array(image.boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array([labels[number] for number in image.categories], dtype=np.int64),
        crowd=np.array(image.crowd, dtype=bool),
        difficult=np.array(image.difficult, dtype=bool),
    )


def _ground_truth(
    content: dict[str, Any], images: Sequence[CheckedImage], category_ids: Collection[int]
) -> dict[str, Any]:
    """Return the COCO dict of these images for pycocotools, whose annotation ids must be positive and unique."""
    entries = [entry for image in images for entry in image.truth]
    ids = [entry.get("id") for entry in entries]
    if len(set(map(str, ids))) < len(ids) or not all(is_id(number) and number > 0 for number in ids):
        entries = [{**entry, "id": number} for number, entry in enumerate(entries, start=1)]
    return {
        "info": content.get("info", {}),
        "images": [{**image.entry, "height": image.size[0], "width": image.size[1]} for image in images if image.size],
        "annotations": entries,
        "categories": [category for category in content["categories"] if category["id"] in category_ids],
    }

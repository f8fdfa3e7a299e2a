"""Annotations and results as COCO's tools take them: rows of a json, checked and without what metrics do not need."""

from __future__ import annotations

import math
from typing import Any


def class_names(ground_truth: dict[str, Any]) -> dict[int, str]:
    """Return category id -> name in the order of ids, which is the order of COCO's arrays.

    Raises:
        ValueError: two categories have one id or one name.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    if len(set(names.values())) < len(categories):
        raise ValueError(f"categories must have distinct ids and names, got {[c.get('name') for c in categories]}")
    return names


def clean_annotations(ground_truth: dict[str, Any], names: dict[int, str]) -> list[dict[str, Any]]:
    """Copy what metrics need of annotations whose image and category the ground truth declares.

    Ids are new, since COCO's tools take an object with id 0 for one not found.

    Raises:
        ValueError: a box is no four finite numbers.
    """
    images = {image["id"] for image in ground_truth["images"]}
    rows: list[dict[str, Any]] = []
    for annotation in ground_truth.get("annotations", []):
        if annotation["image_id"] not in images or annotation["category_id"] not in names:
            continue
        box = _box(annotation, f"annotation {annotation.get('id')}")
        area = annotation.get("area")
        area = float(box[2] * box[3] if area in (None, "") else area)
        crowd = int(annotation.get("iscrowd") in (1, "1"))  # True is 1, and what is not said is no
        difficult = int(bool(annotation.get("difficult")))
        rows.append(_row(annotation, box, id=len(rows) + 1, area=area, iscrowd=crowd, difficult=difficult))
    return rows


def clean_results(results: list[dict[str, Any]], images: set[int], names: dict[int, str]) -> list[dict[str, Any]]:
    """Copy what metrics need of results.

    Raises:
        ValueError: a result is of an image or category that the ground truth does not have, its box is no four finite
            numbers, or its score is none.
    """
    rows = []
    for index, result in enumerate(results):
        for key, known in (("image_id", images), ("category_id", names)):
            if result[key] not in known:
                raise ValueError(f"result {index} must have a {key} of the ground truth, got {result[key]!r}")
        box = _box(result, f"result {index}")
        score = float(result["score"])
        if math.isnan(score):
            raise ValueError(f"result {index} must have a score that is a number, got {score}")
        rows.append(_row(result, box, id=index + 1, area=box[2] * box[3], iscrowd=0, score=score))
    return rows


def _box(row: dict[str, Any], what: str) -> list[float]:
    box = [float(value) for value in row["bbox"]]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"{what} must have a bbox of four finite numbers, got {box}")
    return box


def _row(source: dict[str, Any], box: list[float], **values: float) -> dict[str, Any]:
    return {"image_id": source["image_id"], "category_id": source["category_id"], "bbox": box, **values}

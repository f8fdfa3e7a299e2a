"""Pascal VOC's average precision at IoU 0.5, in the form of VOC2007 and in that of VOC2010 to 2012."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from visionlab.eval.result_rows import class_names, clean_annotations, clean_results

VocForm = Literal["voc07", "voc12"]
MIN_OVERLAP = 0.5
POINTS = {"voc07": 10, "voc12": 100}  # intervals between the recalls of a curve; VOC2007 averages over its own 11


@dataclass
class VocMetrics:
    """Average precision as Pascal VOC defines it; ``None`` where there was nothing to find.

    Args:
        form: ``voc07`` averages the precision at the 11 recalls 0, 0.1, … 1; ``voc12`` takes the area below the whole
            curve. In both, the precision at a recall is the best at that recall or a higher one.
        mAP: the mean over classes.
        per_class: AP of each class, by name.
        recall: the recalls of the curve, which are the 11 of VOC2007 or 101.
        precision: the precision at each of them, mean over classes, for the IoU threshold "0.50".
        images: how many images were evaluated.
        detections: how many detections were given.
        passed_over: how many objects are difficult, which neither count nor make a detection false.
    """

    headline: ClassVar[str] = "mAP"

    form: VocForm
    mAP: float | None = None
    per_class: dict[str, float | None] = field(default_factory=dict)
    recall: list[float] = field(default_factory=list)
    precision: dict[str, list[float]] = field(default_factory=dict)
    images: int = 0
    detections: int = 0
    passed_over: int = 0

    @property
    def what(self) -> str:
        """Return in words what was measured."""
        form = {"voc07": "VOC2007: 11 recalls", "voc12": "VOC2012: area below the curve"}[self.form]
        return f"Pascal VOC average precision at IoU 0.50 ({form}; {self.passed_over:,} difficult objects passed over)"

    def summary(self) -> dict[str, float | None]:
        """Return the one number of VOC's table, by name."""
        return {"mAP": self.mAP}

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON, the form of a run's ``eval/step_*.json``."""
        return {
            "form": self.form,
            "metrics": self.summary(),
            "per_class": self.per_class,
            "pr": {"recall": self.recall, "precision": self.precision},
            "images": self.images,
            "detections": self.detections,
            "passed_over": self.passed_over,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> VocMetrics:
        """Return what ``to_json`` wrote; further keys, such as the step, are ignored."""
        counts = {name: data[name] for name in ("images", "detections", "passed_over") if name in data}
        return cls(data["form"], **data["metrics"], **data["pr"], **counts, per_class=data["per_class"])


def voc_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]], *, form: VocForm) -> VocMetrics:
    """Compare detections with ground truth by the protocol of Pascal VOC (Everingham et al. 2010, doi
    10.1007/s11263-009-0275-4), as the code of its development kit does.

    The detections of a class are taken by falling score, in the order given where scores are equal. Each belongs to the
    object of its image that it overlaps most. Below IoU 0.5 it is false. At 0.5 or more it is right if no detection
    found that object before, and false otherwise, even if a free object is near. Where that object is difficult, the
    detection counts neither way, and difficult objects are not among those to find. A crowd region, which VOC does not
    have, is taken as a difficult object. (The Python copy of the kit's code that came with Faster R-CNN asks for more
    than 0.5; so does the paper.)

    The kit's corners are pixels that belong to the box, which is why it adds 1 to every side. Here a box ends where its
    last pixel ends, ``xmin - 1, ymin - 1, xmax, ymax`` in the kit's numbers, and its sides are the same without it.

    Args:
        ground_truth: an annotation file as read by ``json.load``: ``images``, ``annotations``, which may be
            ``difficult``, and ``categories``.
        results: rows of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels of the original image)
            and ``score``.
        form: ``voc07`` or ``voc12``.

    Raises:
        ValueError: for results that do not fit the ground truth, and for boxes that are not numbers.
    """
    names = class_names(ground_truth)
    annotations = clean_annotations(ground_truth, names)
    rows = clean_results(results, {image["id"] for image in ground_truth["images"]}, names)
    passed_over = sum(_is_passed_over(row) for row in annotations)
    points = POINTS[form]
    metrics = VocMetrics(
        form,
        recall=(np.arange(points + 1) / points).tolist(),
        images=len(ground_truth["images"]),
        detections=len(rows),
        passed_over=passed_over,
    )
    curves = []
    for category, name in names.items():
        objects = [row for row in annotations if row["category_id"] == category]
        count = sum(not _is_passed_over(row) for row in objects)
        metrics.per_class[name] = None
        if count:
            right = _judge(objects, [row for row in rows if row["category_id"] == category])
            curves.append(_precision_at(right, count, points))
            metrics.per_class[name] = float(curves[-1].mean()) if form == "voc07" else _area(right, count)
    if curves:
        metrics.mAP = float(np.mean([value for value in metrics.per_class.values() if value is not None]))
        metrics.precision["0.50"] = np.mean(curves, axis=0).tolist()
    return metrics


def _is_passed_over(row: dict[str, Any]) -> bool:
    return bool(row["difficult"] or row["iscrowd"])


def _judge(objects: list[dict[str, Any]], results: list[dict[str, Any]]) -> np.ndarray:
    """Return for each result of a class whether it is right, best score first, without those that count neither way."""
    by_image = defaultdict(list)
    for row in objects:
        by_image[row["image_id"]].append(row)
    boxes = {image: _corners([row["bbox"] for row in rows]) for image, rows in by_image.items()}
    found: set[int] = set()
    right = []
    for row in sorted(results, key=lambda row: -row["score"]):  # stable: equal scores stay in their order
        overlaps = _overlaps(_corners([row["bbox"]]), boxes.get(row["image_id"], np.zeros((0, 4))))
        nearest = by_image[row["image_id"]][int(overlaps.argmax())] if overlaps.size else None
        if nearest is None or overlaps.max() < MIN_OVERLAP:
            right.append(False)
        elif not _is_passed_over(nearest):
            right.append(nearest["id"] not in found)
            found.add(nearest["id"])
    return np.array(right, dtype=bool)


def _corners(boxes: list[list[float]]) -> np.ndarray:
    found = np.array(boxes, dtype=float)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of one box, ``(1, 4)`` corners, with others, ``(N, 4)``; 0 for a pair without area."""
    sides = np.minimum(box[:, 2:], others[:, 2:]) - np.maximum(box[:, :2], others[:, :2])
    shared = sides.clip(0).prod(1)
    union = (box[:, 2:] - box[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _best_from_here(right: np.ndarray) -> np.ndarray:
    """Return at each detection the best precision that it or a later one reaches."""
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _precision_at(right: np.ndarray, count: int, points: int) -> np.ndarray:
    """Return the precision at the recalls 0, 1 / points, … 1; 0 where a recall is not reached."""
    # In whole numbers, so that 3 of 10 objects are a recall of 0.3.
    first = np.searchsorted(right.cumsum() * points, np.arange(points + 1) * count)
    return np.append(_best_from_here(right), 0.0)[first]


def _area(right: np.ndarray, count: int) -> float:
    """Return the area below precision over recall, which rises by 1 / count with each right detection."""
    return float(_best_from_here(right)[right].sum() / count)

"""COCO's box metrics, computed by pycocotools or faster-coco-eval."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from visionlab.checks import check_above
from visionlab.eval.result_rows import class_names, clean_annotations, clean_results

Backend = Literal["auto", "pycocotools", "faster-coco-eval"]
Metric = float | None

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")


@dataclass
class CocoMetrics:
    """Average precision and recall as COCO defines them; ``None`` where there was nothing to find.

    Args:
        AP: precision averaged over recall, over the IoU thresholds 0.50, 0.55, ... 0.95 and over classes.
        AP50: the same at IoU 0.50 alone.
        AP75: the same at IoU 0.75 alone.
        AP_small: AP of objects of less than 32 x 32 pixels in the original image.
        AP_medium: AP of objects between 32 x 32 and 96 x 96 pixels.
        AP_large: AP of objects of more than 96 x 96 pixels.
        AR_1: recall averaged over IoU thresholds and classes, one detection per image and class.
        AR_10: the same with ten detections.
        AR: the same with ``max_detections``.
        AR_small: AR of small objects.
        AR_medium: AR of medium objects.
        AR_large: AR of large objects.
        per_class: AP of each class, by name.
        recall: the 101 recalls 0.00, 0.01, ... 1.00.
        precision: the precision at each of them, mean over classes, for the IoU thresholds "0.50" and "0.75".
        images: how many images were evaluated.
        detections: how many detections were given.
        max_detections: how many detections per image and class count, best first.
    """

    headline: ClassVar[str] = "AP"
    what: ClassVar[str] = "COCO box metrics"

    AP: Metric = None
    AP50: Metric = None
    AP75: Metric = None
    AP_small: Metric = None
    AP_medium: Metric = None
    AP_large: Metric = None
    AR_1: Metric = None
    AR_10: Metric = None
    AR: Metric = None
    AR_small: Metric = None
    AR_medium: Metric = None
    AR_large: Metric = None
    per_class: dict[str, Metric] = field(default_factory=dict)
    recall: list[float] = field(default_factory=list)
    precision: dict[str, list[float]] = field(default_factory=dict)
    images: int = 0
    detections: int = 0
    max_detections: int = 100

    def summary(self) -> dict[str, Metric]:
        """Return the twelve numbers of COCO's table, by name."""
        return {name: value for name, value in vars(self).items() if name.startswith(("AP", "AR"))}

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON, the form of a run's ``eval/step_*.json``."""
        return {
            "metrics": self.summary(),
            "per_class": self.per_class,
            "pr": {"recall": self.recall, "precision": self.precision},
            "images": self.images,
            "detections": self.detections,
            "max_detections": self.max_detections,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CocoMetrics:
        """Return what ``to_json`` wrote; further keys, such as the step, are ignored."""
        counts = {name: data[name] for name in ("images", "detections", "max_detections") if name in data}
        return cls(**data["metrics"], **data["pr"], **counts, per_class=data["per_class"])


def coco_metrics(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    backend: Backend = "pycocotools",
    max_detections: int = 100,
) -> CocoMetrics:
    """Compare detections with ground truth by COCO's protocol (Lin et al. 2014, arXiv:1405.0312).

    An image without results counts as one in which nothing was found: without any results every metric that has
    something to find is 0. Without any object to find, the metrics are ``None``. Annotations of images or categories
    that the ground truth does not declare are left out, as in COCO's own tools.

    Args:
        ground_truth: an annotation file as read by ``json.load``: ``images``, ``annotations``, ``categories``.
        results: rows of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels of the original image)
            and ``score``.
        backend: which library computes; ``auto`` takes faster-coco-eval where it is installed. The numbers are equal.
        max_detections: how many detections per image and class count, more than 10; COCO's own number is 100.

    Raises:
        ValueError: for results that do not fit the ground truth, and for boxes that are not numbers.
    """
    check_above(10, max_detections=max_detections)
    names = class_names(ground_truth)
    annotations = clean_annotations(ground_truth, names)
    rows = clean_results(results, {image["id"] for image in ground_truth["images"]}, names)
    metrics = CocoMetrics(
        per_class=dict.fromkeys(names.values()),
        recall=RECALLS.tolist(),
        images=len(ground_truth["images"]),
        detections=len(rows),
        max_detections=max_detections,
    )
    if any(not annotation["iscrowd"] for annotation in annotations):
        images = [{"id": image["id"]} for image in ground_truth["images"]]
        categories = [{"id": category} for category in names]
        common = {"images": images, "categories": categories}
        precision, recall = _accumulate(
            {**common, "annotations": annotations}, {**common, "annotations": rows}, backend, [1, 10, max_detections]
        )
        _summarize(metrics, precision, recall, names)
    return metrics


def _accumulate(
    ground_truth: dict[str, Any], results: dict[str, Any], backend: Backend, max_detections: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision ``(threshold, recall, class, area, count)`` and recall, without that axis; -1 is undefined."""
    if backend == "auto":
        backend = "faster-coco-eval" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries print their progress
        if backend == "faster-coco-eval":
            from faster_coco_eval import COCO, COCOeval_faster

            evaluation = COCOeval_faster(COCO(ground_truth), COCO(results), "bbox")
        elif backend == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            pair = [COCO(), COCO()]
            for coco, dataset in zip(pair, (ground_truth, results), strict=True):
                coco.dataset = dataset
                coco.createIndex()
            evaluation = COCOeval(*pair, "bbox")
        else:
            raise ValueError(f"backend must be auto, pycocotools or faster-coco-eval, got {backend!r}")
        evaluation.params.maxDets = max_detections
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _summarize(metrics: CocoMetrics, precision: np.ndarray, recall: np.ndarray, names: dict[int, str]) -> None:
    metrics.AP = _mean(precision[:, :, :, 0, -1])
    metrics.AP50 = _mean(precision[0, :, :, 0, -1])
    metrics.AP75 = _mean(precision[5, :, :, 0, -1])
    metrics.AR_1, metrics.AR_10, metrics.AR = (_mean(recall[:, :, 0, count]) for count in range(3))
    for index, area in enumerate(AREAS[1:], start=1):
        setattr(metrics, f"AP_{area}", _mean(precision[:, :, :, index, -1]))
        setattr(metrics, f"AR_{area}", _mean(recall[:, :, index, -1]))
    metrics.per_class = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names.values())}
    seen = (recall[0, :, 0, -1] > -1).nonzero()[0]
    for index in (0, 5):
        metrics.precision[f"{IOU_THRESHOLDS[index]:.2f}"] = precision[index][:, seen, 0, -1].mean(axis=1).tolist()


def _mean(values: np.ndarray) -> Metric:
    values = values[values > -1]
    return float(values.mean()) if values.size else None

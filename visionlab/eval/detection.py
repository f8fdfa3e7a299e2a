"""From detections in a batch to COCO results of a whole dataset, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch

from visionlab import distributed
from visionlab.checks import check_above
from visionlab.eval.coco_map import Backend, CocoMetrics, coco_metrics
from visionlab.eval.several_views import AUGMENT, SeveralViews
from visionlab.eval.voc_ap import VocMetrics, voc_metrics
from visionlab.structures import Detections, ImageBatch

Metrics = CocoMetrics | VocMetrics
MetricsName = Literal["coco", "voc07", "voc12"]


def headline(metrics: MetricsName) -> str:
    """Return the number that decides which of several evaluations is best: COCO's ``AP``, or VOC's ``mAP``."""
    return CocoMetrics.headline if metrics == "coco" else VocMetrics.headline


def metrics_from_json(data: dict[str, Any]) -> Metrics:
    """Return the metrics of an ``eval/step_*.json``; further keys, such as the step, are ignored."""
    return VocMetrics.from_json(data) if "form" in data else CocoMetrics.from_json(data)


def to_results(
    detections: Detections,
    image_id: int,
    size: tuple[int, int],
    original_size: tuple[int, int],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Return the detections in one image as rows of a COCO results file.

    Args:
        detections: with boxes in pixels of the image as the detector saw it.
        image_id: the id of the image in the annotation file.
        size: ``(height, width)`` of the image as the detector saw it, without padding.
        original_size: ``(height, width)`` of the image in its file, in whose pixels the rows are.
        category_ids: the category id of each label.
    """
    scale = torch.tensor([original_size[1] / size[1], original_size[0] / size[0]] * 2, dtype=torch.float64)
    boxes = detections.boxes.detach().cpu().double() * scale
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return [
        {"image_id": int(image_id), "category_id": int(category_ids[label]), "bbox": box, "score": score}
        for box, score, label in rows
    ]


class DetectionEvaluator:
    """Gathers the detections of a dataset over batches and processes, and measures them.

    Args:
        ground_truth: the annotation file as a dict.
        category_ids: the category id of each label.
        metrics: coco: AP over IoU 0.5 to 0.95, with AP50, AP75 and by size; objects that are difficult count as any
            other | voc07: Pascal VOC's AP at IoU 0.5, mean over 11 recalls | voc12: the same, area below the curve;
            VOC's pass difficult objects over.
        backend: which library computes COCO's metrics.
        max_detections: how many detections per image and class count in COCO's metrics, more than 10.
        augment: the views of each image that the detections are made from, all together: of boxes of any views that
            are alike the best stays, with its score. By default the image as it is.

    Attributes:
        views: those views.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        category_ids: Sequence[int],
        *,
        metrics: MetricsName = "coco",
        backend: Backend = "pycocotools",
        max_detections: int = 100,
        augment: Annotated[dict[str, Any] | None, AUGMENT] = None,
    ) -> None:
        check_above(10, max_detections=max_detections)
        if metrics != "coco" and backend != "pycocotools":
            raise ValueError(f"backend: no effect beside metrics: {metrics}, which visionlab computes itself")
        if metrics != "coco" and max_detections != 100:
            raise ValueError(f"max_detections: no effect beside metrics: {metrics}, where all detections count")
        self.kind: MetricsName = metrics
        self.ground_truth = ground_truth
        self.category_ids = list(category_ids)
        self.backend = backend
        self.max_detections = max_detections
        self.views: SeveralViews = AUGMENT.build("augment", augment) if augment else SeveralViews()
        if augment is not None and not self.views.flip and self.views.sizes is None:
            raise ValueError("augment: no effect without flip or sizes")
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def add(self, batch: ImageBatch, detections: Sequence[Detections]) -> None:
        """Take the detections of one batch, whose boxes are in pixels of the batch's images."""
        images = zip(detections, batch.ids, batch.sizes, batch.original_sizes, strict=True)
        for found, image_id, size, original_size in images:
            if image_id in self._rows:
                raise ValueError(f"each image must be evaluated once, image {image_id} came again")
            self._rows[image_id] = to_results(found, image_id, size, original_size, self.category_ids)

    def results(self) -> list[dict[str, Any]]:
        """Return the rows of all processes, in the order of image ids; all processes must call it together."""
        rows: dict[int, list[dict[str, Any]]] = {}
        for part in distributed.gather_objects(self._rows):
            twice = rows.keys() & part.keys()
            if twice:
                raise ValueError(f"each image must be evaluated by one process, image {min(twice)} came from two")
            rows |= part
        return [row for image_id in sorted(rows) for row in rows[image_id]]

    def metrics(self, results: list[dict[str, Any]] | None = None) -> Metrics:
        """Return the metrics on every process; all processes must call it together.

        Args:
            results: what ``results`` returned, where it was called already.
        """
        results = self.results() if results is None else results
        return distributed.broadcast(self._computed(results) if distributed.is_main() else None)

    def _computed(self, results: list[dict[str, Any]]) -> Metrics:
        if self.kind != "coco":
            return voc_metrics(self.ground_truth, results, form=self.kind)
        return coco_metrics(self.ground_truth, results, backend=self.backend, max_detections=self.max_detections)

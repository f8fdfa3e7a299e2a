"""Non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.checks import check_floating, check_shape, widen
from visionlab.ops.reference import nms as reference
from visionlab.ops.register import operator

_nms = operator("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor", reference.nms)


@torch.library.register_fake("visionlab::nms")
def _fake(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the boxes that no kept box of higher score overlaps by more than a threshold.

    Args:
        boxes: ``(N, 4)`` floating point, ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``; finite.
        scores: ``(N,)`` of the dtype of ``boxes``; not NaN. Of equal scores, the first counts as the higher.
        iou_threshold: intersection over union above which the box of lower score goes, in ``[0, 1]``.

    Returns:
        ``(K,)`` int64, the indices of the kept boxes, best score first.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit.
        RuntimeError: if a box is not finite or a score is NaN.
    """
    return _checked("nms", boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes within each group only, for example within each class.

    Groups are compared as such. No coordinates are shifted to keep groups apart, so none lose digits.

    Args:
        boxes: ``(N, 4)`` floating point, ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``; finite.
        scores: ``(N,)`` of the dtype of ``boxes``; not NaN.
        idxs: ``(N,)`` integer, the group of each box; any values.
        iou_threshold: intersection over union above which the box of lower score goes, in ``[0, 1]``.

    Returns:
        ``(K,)`` int64, the indices of the kept boxes of all groups, best score first.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit.
        RuntimeError: if a box is not finite or a score is NaN.
    """
    if not isinstance(idxs, Tensor) or idxs.is_floating_point() or idxs.is_complex():
        got = idxs.dtype if isinstance(idxs, Tensor) else type(idxs).__name__
        raise ValueError(f"batched_nms: idxs must be an integer tensor, got {got}")
    return _checked("batched_nms", boxes, scores, idxs, iou_threshold)


def _checked(op: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    check_floating(op, boxes=boxes, scores=scores)
    check_shape(op, "boxes", boxes, "N", 4)
    check_shape(op, "scores", scores, boxes.shape[0])
    if idxs is not None:
        check_shape(op, "idxs", idxs, boxes.shape[0])
        if idxs.device != boxes.device:
            raise ValueError(f"{op}: idxs must be on the device of boxes, {boxes.device}, got {idxs.device}")
        idxs = idxs.long()
    boxes = widen(boxes.detach())
    return _nms(boxes, scores.detach().to(boxes.dtype), idxs, iou_threshold)

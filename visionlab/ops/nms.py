"""Non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.checks import check_floating, check_shape, refuse
from visionlab.ops.reference import nms as reference
from visionlab.ops.register import operator

_nms = operator("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor", reference.nms)
_nms_padded = operator(
    "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, SymInt max_output) -> (Tensor, Tensor)",
    reference.nms_padded,
)


@torch.library.register_fake("visionlab::nms")
def _fake(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("visionlab::nms_padded")
def _fake_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    return boxes.new_empty(max_output, dtype=torch.int64), boxes.new_empty((), dtype=torch.int64)


@torch.library.custom_op("visionlab::nms_padded_sets", mutates_args=())
def _nms_padded_sets(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    """Call ``nms_padded`` for each of several sets of boxes, however many there are when a graph runs."""
    indices = boxes.new_zeros((boxes.shape[0], max_output), dtype=torch.int64)
    counts = boxes.new_zeros(boxes.shape[0], dtype=torch.int64)
    for i, of_set in enumerate(zip(boxes, scores, strict=True)):
        indices[i], counts[i] = _nms_padded(*of_set, iou_threshold, max_output)
    return indices, counts


@_nms_padded_sets.register_fake
def _fake_sets(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    sets = boxes.shape[0]
    return boxes.new_empty((sets, max_output), dtype=torch.int64), boxes.new_empty(sets, dtype=torch.int64)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the boxes that no kept box of higher score overlaps by more than a threshold.

    On CUDA the call waits for the device once, for the number of kept boxes. There no value raises: a box that is not
    finite, or whose score is NaN, is not kept and removes none. The overlaps of N boxes take at most 64 MiB there.

    Args:
        boxes: ``(N, 4)`` floating point, ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``; finite.
        scores: ``(N,)`` of the dtype of ``boxes``; not NaN. Of equal scores, the first counts as the higher.
        iou_threshold: intersection over union above which the box of lower score goes, in ``[0, 1]``.

    Returns:
        ``(K,)`` int64, the indices of the kept boxes, best score first.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit.
        RuntimeError: if a box is not finite or a score is NaN, except on CUDA.
    """
    return _nms(*_checked("nms", boxes, scores), None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes within each group only, for example within each class.

    Groups are compared as such. No coordinates are shifted to keep groups apart, so none lose digits. On CUDA it does
    as :func:`nms`.

    Args:
        boxes: ``(N, 4)`` floating point, ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``; finite.
        scores: ``(N,)`` of the dtype of ``boxes``; not NaN.
        idxs: ``(N,)`` the group of each box, any whole number; of a floating point one, what follows the point is cut.
        iou_threshold: intersection over union above which the box of lower score goes, in ``[0, 1]``.

    Returns:
        ``(K,)`` int64, the indices of the kept boxes of all groups, best score first.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit.
        RuntimeError: if a box is not finite or a score is NaN, except on CUDA.
    """
    if not isinstance(idxs, Tensor) or idxs.is_complex():
        got = idxs.dtype if isinstance(idxs, Tensor) else type(idxs).__name__
        refuse("batched_nms", "idxs", "a tensor of whole numbers", got)
    boxes, scores = _checked("batched_nms", boxes, scores)
    check_shape("batched_nms", "idxs", idxs, boxes.shape[0])
    if idxs.device != boxes.device:
        refuse("batched_nms", "idxs", f"the device of boxes, {boxes.device}", idxs.device)
    return _nms(boxes, scores, idxs.long(), iou_threshold)


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    """Keep boxes as :func:`nms` does, in an answer whose shape does not depend on them.

    Nothing waits for the device, and exported or compiled graphs have no sizes that only a run knows. Indices behind
    the last kept box are 0, which any indexing takes; ``torch.arange(max_output) < count`` tells them apart.

    Args:
        boxes: ``(..., N, 4)`` floating point, ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``; finite. Each set
            of N boxes, for example those of a class in an image, is looked at by itself.
        scores: ``(..., N)`` of the dtype of ``boxes``; not NaN. Of equal scores, the first counts as the higher.
        iou_threshold: intersection over union above which the box of lower score goes, in ``[0, 1]``.
        max_output: the length of the answer; of more kept boxes, those of the lowest scores are left out.

    Returns:
        ``(..., max_output)`` int64, the indices of the kept boxes in their set, best score first, then zeros; and
        ``(...)`` int64, how many are kept boxes.

    Raises:
        ValueError: if shapes, dtypes, devices or ``max_output`` do not fit.
        RuntimeError: if a box is not finite or a score is NaN, except on CUDA.
    """
    if max_output < 0:
        refuse("nms_padded", "max_output", "at least 0", max_output)
    leading = boxes.shape[:-2] if isinstance(boxes, Tensor) else ()
    boxes, scores = _checked("nms_padded", boxes, scores, *leading)
    if not leading:
        return _nms_padded(boxes, scores, iou_threshold, max_output)
    indices, counts = _nms_padded_sets(boxes.flatten(0, -3), scores.flatten(0, -2), iou_threshold, max_output)
    return indices.reshape(*leading, max_output), counts.reshape(leading)


def _checked(op: str, boxes: Tensor, scores: Tensor, *leading: int) -> tuple[Tensor, Tensor]:
    check_floating(op, boxes=boxes, scores=scores)
    check_shape(op, "boxes", boxes, *leading, "N", 4)
    check_shape(op, "scores", scores, *boxes.shape[:-1])
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    return boxes.detach().to(dtype), scores.detach().to(dtype)

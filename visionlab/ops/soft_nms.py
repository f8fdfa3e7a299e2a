"""Soft-NMS: boxes that overlap a better one lose score instead of being removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visionlab.ops.checks import check_floating, check_shape, refuse
from visionlab.ops.reference import soft_nms as reference
from visionlab.ops.register import operator

_METHODS = ("linear", "gaussian")  # the operator takes the position in this list

_soft_nms = operator(
    "soft_nms(Tensor boxes, Tensor scores, float iou_threshold, float sigma, float score_threshold, int method) "
    "-> (Tensor, Tensor)",
    reference.soft_nms,
)


@torch.library.register_fake("visionlab::soft_nms")
def _fake(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, score_threshold: float, method: int
) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, dtype=torch.int64), boxes.new_empty(count)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)


def _backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    return (None,) * 6


torch.library.register_autograd("visionlab::soft_nms", _backward, setup_context=_setup)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    method: str = "linear",
) -> tuple[Tensor, Tensor]:
    """Take the box of the highest score, lower the scores of those that overlap it, and go on with the rest.

    A box whose score is, or falls, below ``score_threshold`` is left out. No gradient flows through it. On CUDA the
    call waits for the device once, for the number of boxes, and a box that is not finite, or whose score is not, is
    left out and lowers no score.

    Args:
        boxes: ``(N, 4)`` floating point, ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``; finite.
        scores: ``(N,)`` of the dtype of ``boxes``; finite. Of equal scores, the first counts as the higher.
        iou_threshold: ``"linear"`` lowers scores at this intersection over union and above, in ``[0, 1]``;
            ``"gaussian"`` lowers all and does not look at it.
        sigma: width of ``"gaussian"``, above 0.
        score_threshold: the least score of a box that stays.
        method: a score is multiplied by ``1 - iou`` (``"linear"``) or by ``exp(-iou² / sigma)`` (``"gaussian"``).

    Returns:
        ``(K,)`` int64, the indices of the boxes in the order in which they were taken, and ``(K,)`` their lowered
        scores, which descend.

    Raises:
        ValueError: if shapes, dtypes, devices or settings do not fit.
        RuntimeError: if a box or a score is not finite, except on CUDA.

    Source: Bodla et al., Soft-NMS, 2017, arXiv:1704.04503, figure 2 and equations 2 and 3.
    """
    check_floating("soft_nms", boxes=boxes, scores=scores)
    check_shape("soft_nms", "boxes", boxes, "N", 4)
    check_shape("soft_nms", "scores", scores, boxes.shape[0])
    if method not in _METHODS:
        refuse("soft_nms", "method", f"one of {', '.join(_METHODS)}", repr(method))
    if not 0 < sigma < float("inf"):
        refuse("soft_nms", "sigma", "a number above 0", sigma)
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    settings = (iou_threshold, sigma, score_threshold, _METHODS.index(method))
    keep, lowered = _soft_nms(boxes.detach().to(dtype), scores.detach().to(dtype), *settings)
    return keep, lowered.to(scores.dtype)

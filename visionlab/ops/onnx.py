"""How ``torch.onnx.export(..., dynamo=True)`` writes the operators, which ONNX does not have.

An exporter replaces an operator it does not know by its decomposition, where one is registered. ONNX has RoiAlign and
NonMaxSuppression; the other operators become the formulas of their PyTorch path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from visionlab.ops.reference import boxes as box_formulas
from visionlab.ops.reference import (
    deform_conv2d,
    deform_ps_roi_pool,
    deform_roi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_pool,
)


def roi_align(
    input: Tensor,
    boxes: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return ONNX's RoiAlign of opset 16."""
    attributes: dict[str, Any] = {
        "mode": "avg",
        "output_height": pooled_height,
        "output_width": pooled_width,
        "spatial_scale": spatial_scale,
        "sampling_ratio": max(sampling_ratio, 0),
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
    }
    return torch.onnx.ops.symbolic(
        "RoiAlign",
        (input, boxes[:, 1:], boxes[:, 0].long()),
        attributes,
        dtype=input.dtype,
        shape=(boxes.shape[0], input.shape[1], pooled_height, pooled_width),
        version=16,
    )


def multi_scale_roi_align(
    features: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    pooled_height: int,
    pooled_width: int,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return, of ONNX's RoiAlign of every level, the rows that belong to it."""
    output: Any = None
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        pooled = roi_align(feature, boxes, pooled_height, pooled_width, scale, sampling_ratio, aligned)
        output = pooled if output is None else torch.where((levels == level)[:, None, None, None], pooled, output)
    return output


def _survivors(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Return the boxes in order of score, and for each in that order whether ONNX's NonMaxSuppression keeps it."""
    boxes = boxes.float()
    if idxs is not None:  # boxes of different groups move apart
        boxes = boxes + (idxs * (boxes.max() - boxes.min() + 1))[:, None]
    limit = torch.full((1,), torch.iinfo(torch.int64).max, dtype=torch.int64)
    # How many boxes are kept is known only when the model runs. This number stands for it in shapes, and nowhere else.
    unknown: Any = scores.isfinite().sum().item()
    torch._check(unknown >= 0)
    # Rows (batch, class, box) of the boxes that are kept.
    rows = torch.onnx.ops.symbolic(
        "NonMaxSuppression",
        (boxes[None], scores.float()[None, None], limit, torch.full((1,), iou_threshold)),
        dtype=torch.int64,
        shape=(unknown, 3),
        version=11,
    )
    kept = torch.zeros_like(scores, dtype=torch.int64).scatter(0, rows[:, 2], rows[:, 1] + 1)
    order = scores.sort(descending=True).indices  # becomes TopK, which puts the first of equal scores first
    return order, kept[order]


def nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that are kept."""
    order, kept = _survivors(boxes, scores, idxs, iou_threshold)
    return order[kept.nonzero()[:, 0]]


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the boxes that are kept, padded to a fixed number, and how many there are."""
    order, kept = _survivors(boxes, scores, None, iou_threshold)
    place = torch.where(kept > 0, kept.cumsum(0) - 1, max_output).clamp(max=max_output)
    indices = order.new_zeros((max_output + 1,)).scatter(0, place, order)[:max_output]
    return indices, kept.sum().clamp(max=max_output)


def soft_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, score_threshold: float, method: int
) -> tuple[Tensor, Tensor]:
    """Return indices in the order in which boxes are taken, and their lowered scores: a loop over boxes."""
    iou = box_formulas.box_iou(boxes, boxes, 0).nan_to_num(0)
    weights = (-iou.square() / sigma).exp() if method == 1 else torch.where(iou >= iou_threshold, 1 - iou, 1.0)
    out = torch.full_like(scores[:1], -torch.inf)  # the score of a box that is taken or dropped
    least = torch.full_like(out, score_threshold)

    def any_left(taken: Tensor, scores: Tensor, keep: Tensor, lowered: Tensor) -> Tensor:
        return scores.max() > -torch.inf

    def take_best(taken: Tensor, scores: Tensor, keep: Tensor, lowered: Tensor) -> tuple[Tensor, ...]:
        best = scores.argmax(0, keepdim=True)
        keep, lowered = keep.scatter(0, taken, best), lowered.scatter(0, taken, scores.index_select(0, best))
        after = scores.clamp(min=torch.finfo(scores.dtype).min) * weights.index_select(0, best)[0]
        left = (scores > -torch.inf) & (after >= least)
        return taken + 1, torch.where(left, after, out).scatter(0, best, out), keep, lowered

    start = (
        torch.zeros(1, dtype=torch.int64, device=scores.device),
        torch.where(scores < least, out, scores),
        torch.zeros_like(scores, dtype=torch.int64),
        torch.zeros_like(scores),
    )
    taken, _, keep, lowered = torch._higher_order_ops.while_loop(any_left, take_best, start)
    first = (torch.arange(scores.shape[0], device=scores.device) < taken).nonzero()[:, 0]
    return keep[first], lowered[first]


FORMULAS: dict[str, Callable[..., Any]] = {
    "box_iou": box_formulas.box_iou,
    "deform_conv2d": deform_conv2d.deform_conv2d,
    "deform_ps_roi_pool": deform_ps_roi_pool.formula,
    "deform_roi_pool": deform_roi_pool.formula,
    "multi_scale_roi_align": multi_scale_roi_align,
    "nms": nms,
    "nms_padded": nms_padded,
    "ps_roi_align": ps_roi_align.formula,
    "ps_roi_pool": ps_roi_pool.formula,
    "roi_align": roi_align,
    "roi_pool": roi_pool.formula,
    "soft_nms": soft_nms,
}


def register() -> None:
    """Tell exporters of every formula; the operators must be there already."""
    for name, formula in FORMULAS.items():
        op = getattr(torch.ops.visionlab, name).default
        register_decomposition(op)(formula)
        # A fake tensor of unknown size would be computed by the formula as well, were there no "meta" entry; the
        # operator's own fake kernel is what it must use.
        register_decomposition(op, type="meta")(formula)

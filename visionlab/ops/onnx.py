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
from visionlab.ops.reference import deform_conv2d as deform_formulas


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
    attributes = {
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


FORMULAS: dict[str, Callable[..., Any]] = {
    "box_iou": box_formulas.box_iou,
    "deform_conv2d": deform_formulas.deform_conv2d,
    "nms": nms,
    "nms_padded": nms_padded,
    "roi_align": roi_align,
}


def register() -> None:
    """Tell exporters of every formula; the operators must be there already."""
    for name, formula in FORMULAS.items():
        op = getattr(torch.ops.visionlab, name).default
        register_decomposition(op)(formula)
        # A fake tensor of unknown size would be computed by the formula as well, were there no "meta" entry; the
        # operator's own fake kernel is what it must use.
        register_decomposition(op, type="meta")(formula)

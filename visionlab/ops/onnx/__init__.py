"""How ``torch.onnx.export(..., dynamo=True)`` writes the operators, which ONNX does not have.

An exporter replaces an operator it does not know by its decomposition, where one is registered. ONNX has RoiAlign,
MaxRoiPool and NonMaxSuppression; the other operators become formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import register_decomposition

from visionlab.ops.onnx import boxes, pools
from visionlab.ops.reference import deform_conv2d
from visionlab.ops.reference.boxes import box_iou

FORMULAS: dict[str, Callable[..., Any]] = {
    "box_iou": box_iou,
    "deform_conv2d": deform_conv2d.deform_conv2d,
    "deform_ps_roi_pool": pools.deform_ps_roi_pool,
    "deform_roi_pool": pools.deform_roi_pool,
    "multi_scale_roi_align": pools.multi_scale_roi_align,
    "nms": boxes.nms,
    "nms_padded": boxes.nms_padded,
    "nms_padded_sets": boxes.nms_padded_sets,
    "ps_roi_align": pools.ps_roi_align,
    "ps_roi_pool": pools.ps_roi_pool,
    "roi_align": pools.roi_align,
    "roi_pool": pools.roi_pool,
    "soft_nms": boxes.soft_nms,
}


def register() -> None:
    """Tell exporters of every formula; the operators must be there already."""
    for name, formula in FORMULAS.items():
        op = getattr(torch.ops.visionlab, name).default
        register_decomposition(op)(formula)
        # A fake tensor of unknown size would be computed by the formula as well, were there no "meta" entry; the
        # operator's own fake kernel is what it must use.
        register_decomposition(op, type="meta")(formula)

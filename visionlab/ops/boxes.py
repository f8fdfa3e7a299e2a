"""Arithmetic on boxes, with the names and signatures of ``torchvision.ops``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from visionlab.ops.checks import refuse
from visionlab.ops.delegate import torchvision_name
from visionlab.ops.reference import boxes as reference
from visionlab.ops.register import differentiable, once_differentiable, operator

_ROTATED = ("cxcywhr", "xywhr", "xyxyxyxy")

_box_iou_op = operator("box_iou(Tensor boxes1, Tensor boxes2, int format) -> Tensor", reference.box_iou)
_box_iou_backward_op = operator(
    "box_iou_backward(Tensor grad, Tensor boxes, Tensor others, int format) -> Tensor", reference.box_iou_backward
)


@torch.library.register_fake("visionlab::box_iou")
def _fake(boxes1: Tensor, boxes2: Tensor, format: int) -> Tensor:
    return boxes1.new_empty((boxes1.shape[0], boxes1.shape[1], boxes2.shape[1]))


@torch.library.register_fake("visionlab::box_iou_backward")
def _fake_backward(grad: Tensor, boxes: Tensor, others: Tensor, format: int) -> Tensor:
    return boxes.new_empty(boxes.shape)


_box_iou_backward = once_differentiable(_box_iou_backward_op)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    boxes1, boxes2, ctx.format = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    boxes1, boxes2 = ctx.saved_tensors
    first = _box_iou_backward(grad, boxes1, boxes2, ctx.format) if ctx.needs_input_grad[0] else None
    second = _box_iou_backward(grad.mT, boxes2, boxes1, ctx.format) if ctx.needs_input_grad[1] else None
    return first, second, None


_box_iou = differentiable(_box_iou_op, _setup, _backward)


def box_area(boxes: Tensor, fmt: str = "xyxy") -> Tensor:
    """Return the area of each box.

    Args:
        boxes: ``(..., 4)`` in pixels.
        fmt: what the four numbers are: two corners ``"xyxy"``, a corner and sides ``"xywh"``, or a center and sides
            ``"cxcywh"``.

    Returns:
        ``(...)`` in square pixels; float32 for half types, int32 for integers shorter than that.

    Raises:
        ValueError: if ``fmt`` is another.
    """
    return reference.box_area(boxes, _format("box_area", fmt))


def _format(op: str, fmt: str, more: tuple[str, ...] = ()) -> int:
    if fmt not in reference.FORMATS:
        known = ", ".join((*reference.FORMATS, *more))
        refuse(op, "fmt", f"one of {known}", repr(fmt))
    return reference.FORMATS.index(fmt)


def box_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return the area that each pair of boxes shares.

    Args:
        boxes1: ``(N, 4)`` in pixels.
        boxes2: ``(M, 4)`` in pixels.

    Returns:
        ``(N, M)`` in square pixels.
    """
    width = torch.minimum(boxes1[:, None, 2], boxes2[:, 2]) - torch.maximum(boxes1[:, None, 0], boxes2[:, 0])
    height = torch.minimum(boxes1[:, None, 3], boxes2[:, 3]) - torch.maximum(boxes1[:, None, 1], boxes2[:, 1])
    return width.clamp(min=0) * height.clamp(min=0)


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Return the intersection over union of each pair of boxes.

    It can be differentiated by both arguments, once. Two boxes without any area have NaN, as in torchvision.

    Args:
        boxes1: ``(..., N, 4)`` in pixels, of any real dtype.
        boxes2: ``(..., M, 4)`` in pixels; its leading dimensions broadcast with those of ``boxes1``.
        fmt: what the four numbers are: two corners ``"xyxy"``, a corner and sides ``"xywh"``, or a center and sides
            ``"cxcywh"``. The rotated ``"cxcywhr"``, ``"xywhr"`` and ``"xyxyxyxy"`` are left to torchvision.

    Returns:
        ``(..., N, M)`` in ``[0, 1]``; float64 if an argument is, else float32.

    Raises:
        ValueError: if shapes, dtypes, devices or ``fmt`` do not fit.
        ImportError: for rotated boxes, without torchvision.
    """
    if fmt in _ROTATED:
        return torchvision_name("box_iou", f"box_iou of {fmt} boxes")(boxes1, boxes2, fmt)
    format = _format("box_iou", fmt, _ROTATED)
    for name, letter, boxes in (("boxes1", "N", boxes1), ("boxes2", "M", boxes2)):
        if not isinstance(boxes, Tensor) or boxes.is_complex() or boxes.dtype == torch.bool:
            got = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
            refuse("box_iou", name, "a tensor of real numbers", got)
        if boxes.dim() < 2 or boxes.shape[-1] != 4:
            refuse("box_iou", name, f"shape (..., {letter}, 4)", tuple(boxes.shape))
    if boxes1.device != boxes2.device:
        refuse("box_iou", "boxes2", f"the device of boxes1, {boxes1.device}", boxes2.device)
    if not (boxes1.is_floating_point() and boxes2.is_floating_point()):
        return reference.box_iou(boxes1, boxes2, format)
    dtype = torch.promote_types(torch.promote_types(boxes1.dtype, boxes2.dtype), torch.float32)
    try:
        batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    except RuntimeError:
        leading = f"leading dimensions that broadcast with those of boxes1, {tuple(boxes1.shape)}"
        refuse("box_iou", "boxes2", leading, f"shape {tuple(boxes2.shape)}")
    rows, columns = boxes1.shape[-2], boxes2.shape[-2]
    boxes1 = boxes1.to(dtype).expand(*batch, rows, 4).reshape(math.prod(batch), rows, 4)
    boxes2 = boxes2.to(dtype).expand(*batch, columns, 4).reshape(math.prod(batch), columns, 4)
    return _box_iou(boxes1, boxes2, format).reshape(*batch, rows, columns)


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the part of each box that lies inside the image.

    Args:
        boxes: ``(..., 4)`` in pixels.
        size: ``(height, width)`` of the image.

    Returns:
        ``(..., 4)``; a box outside the image has no area.
    """
    height, width = size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=-1).flatten(-2)


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Return the indices of the boxes whose sides are both at least ``min_size``; a box with NaN is not among them.

    Args:
        boxes: ``(N, 4)`` in pixels.
        min_size: the shortest side that stays, in pixels.

    Returns:
        ``(K,)`` int64, ascending.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.where((sides >= min_size).all(dim=1))[0]

"""What operators ask of their arguments, and what they say otherwise: ``operator: argument: expected …, got …``."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from visionlab.ops.formats import geometry

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refuse(op: str, name: str, expected: str, got: Any) -> NoReturn:
    """Raise the ValueError of an operator that did not get what it asks of an argument."""
    raise ValueError(f"{op}: {name}: expected {expected}, got {got}")


def check_floating(op: str, **tensors: Tensor) -> None:
    """Refuse anything but floating point tensors of one dtype and one device; autocast may mix dtypes."""
    names = list(tensors)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            refuse(op, name, "a tensor", type(tensor).__name__)
        if tensor.dtype not in _FLOATS:
            refuse(op, name, "float16, bfloat16, float32 or float64", tensor.dtype)
    first = tensors[names[0]]
    for name in names[1:]:
        if tensors[name].device != first.device:
            refuse(op, name, f"the device of {names[0]}, {first.device}", tensors[name].device)
        if tensors[name].dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            refuse(op, name, f"the dtype of {names[0]}, {first.dtype}", tensors[name].dtype)


def check_shape(op: str, name: str, tensor: Tensor, *sizes: int | str) -> None:
    """Refuse a tensor of another shape.

    Args:
        op: the operator, for the message.
        name: the argument, for the message.
        tensor: the argument.
        sizes: the size of each dimension; a letter stands for any size.
    """
    if not isinstance(tensor, Tensor):
        refuse(op, name, "a tensor", type(tensor).__name__)
    shape = tensor.shape
    if len(shape) == len(sizes):
        for got, size in zip(shape, sizes, strict=True):
            if not isinstance(size, str) and got != size:
                break
        else:
            return
    expected = ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "")
    refuse(op, name, f"shape ({expected})", tuple(shape))


def pair(op: str, name: str, value: int | Sequence[int], least: int = 1) -> tuple[int, int]:
    """Return (height, width) from one number or two.

    Args:
        op: the operator, for the message.
        name: the argument, for the message.
        value: one number for both, or two.
        least: the smallest number that makes sense.
    """
    sizes = (value, value) if isinstance(value, (int, torch.SymInt)) else _whole_numbers(value)
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    if len(sizes) != 2 or not (sizes[0] >= least and sizes[1] >= least):
        refuse(op, name, f"one or two whole numbers of at least {least}", value)
    return sizes[0], sizes[1]


def _whole_numbers(value: Any) -> tuple[Any, ...]:
    """Return numbers of any integer type, NumPy's too; nothing where there are others."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not all(hasattr(number, "__index__") for number in values):
        return ()
    return tuple(number if isinstance(number, torch.SymInt) else operator.index(number) for number in values)


def check_scale(op: str, spatial_scale: float) -> None:
    """Refuse a scale that is not finite."""
    if not -math.inf < spatial_scale < math.inf:  # a compiler's symbol has no math.isfinite
        refuse(op, "spatial_scale", "a finite number", spatial_scale)


def with_image_index(op: str, boxes: Tensor | Sequence[Tensor], input: Tensor) -> Tensor:
    """Return boxes as ``(K, 5)``, with the index of their image in front.

    Args:
        op: the operator, for the message.
        boxes: ``(K, 5)`` already, or for each image ``(L, 4)``.
        input: ``(N, C, H, W)``, the map they lie on.
    """
    if isinstance(boxes, Tensor):
        check_floating(op, input=input, boxes=boxes)
        check_shape(op, "boxes", boxes, "K", 5)
        return boxes
    if not isinstance(boxes, Sequence):
        refuse(op, "boxes", "a tensor or a list of one for each image", type(boxes).__name__)
    if len(boxes) != input.shape[0]:
        refuse(op, "boxes", f"a list of one tensor for each of {input.shape[0]} images", len(boxes))
    for i, of_image in enumerate(boxes):
        check_floating(op, **{"input": input, f"boxes[{i}]": of_image})
        check_shape(op, f"boxes[{i}]", of_image, "L", 4)
    if not boxes:
        return input.new_zeros((0, 5))
    # Half precision could not tell the index of image 257 from that of 256.
    exact = [geometry(of_image, input) for of_image in boxes]
    return torch.cat([nn.functional.pad(of_image, (1, 0), value=i) for i, of_image in enumerate(exact)])


def check_pixels(op: str, name: str, map: Tensor, boxes: Tensor) -> None:
    """Refuse a map without pixels, unless there are no boxes to pool from it."""
    if 0 in map.shape[2:] and boxes.shape[0]:
        refuse(op, name, "pixels to pool from", f"shape {tuple(map.shape)}")


def check_channels(op: str, input: Tensor, height: int, width: int) -> None:
    """Refuse a map whose channels do not come in groups of ``height * width``."""
    if input.shape[1] % (height * width):
        refuse(op, "input", f"a multiple of {height} * {width} channels", f"shape {tuple(input.shape)}")

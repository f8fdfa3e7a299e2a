"""What the operators ask of their arguments, and the messages when they do not get it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionlab.ops.register import COMPILED_FOR_CUDA

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *_HALF)


def check_floating(op: str, **tensors: Tensor) -> None:
    """Refuse anything but floating point tensors of one dtype and one device; autocast may mix dtypes."""
    names = list(tensors)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    first = tensors[names[0]]
    for name in names[1:]:
        if tensors[name].device != first.device:
            raise ValueError(
                f"{op}: {name} must be on the device of {names[0]}, {first.device}, got {tensors[name].device}"
            )
        if tensors[name].dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            raise ValueError(
                f"{op}: {name} must have the dtype of {names[0]}, {first.dtype}, got {tensors[name].dtype}"
            )


def check_shape(op: str, name: str, tensor: Tensor, *sizes: int | str) -> None:
    """Refuse a tensor of another shape.

    Args:
        op: the operator, for the message.
        name: the argument, for the message.
        tensor: the argument.
        sizes: the size of each dimension; a letter stands for any size.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    shape = tensor.shape
    if len(shape) == len(sizes):
        for got, size in zip(shape, sizes, strict=True):
            if not isinstance(size, str) and got != size:
                break
        else:
            return
    expected = ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "")
    raise ValueError(f"{op}: {name} must have shape ({expected}), got {tuple(shape)}")


def widen(tensor: Tensor) -> Tensor:
    """Return a half precision tensor as float32 unless its device has kernels for it, any other as it is."""
    return tensor.float() if tensor.dtype in _HALF and not (COMPILED_FOR_CUDA and tensor.is_cuda) else tensor


def geometry(tensor: Tensor, input: Tensor) -> Tensor:
    """Return boxes or offsets in the precision that they are computed in: float64 beside float64, else float32."""
    return cast(tensor, torch.float64 if input.dtype == torch.float64 else torch.float32)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype. On tiny inputs even a call that changes nothing takes a good share of the time."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


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
        raise ValueError(f"{op}: {name} must be one or two numbers of at least {least}, got {value}")
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
        raise ValueError(f"{op}: spatial_scale must be finite, got {spatial_scale}")


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
        raise ValueError(f"{op}: boxes must be a tensor or a list of one for each image, got {type(boxes).__name__}")
    if len(boxes) != input.shape[0]:
        raise ValueError(f"{op}: a list of boxes must have one tensor per image, {input.shape[0]}, got {len(boxes)}")
    for i, of_image in enumerate(boxes):
        check_floating(op, **{"input": input, f"boxes[{i}]": of_image})
        check_shape(op, f"boxes[{i}]", of_image, "L", 4)
    if not boxes:
        return input.new_zeros((0, 5))
    # Half precision could not tell the index of image 257 from that of 256.
    exact = [geometry(of_image, input) for of_image in boxes]
    return torch.cat([nn.functional.pad(of_image, (1, 0), value=i) for i, of_image in enumerate(exact)])

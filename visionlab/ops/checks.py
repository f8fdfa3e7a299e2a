"""What the operators ask of their arguments, and the messages when they do not get it."""

from __future__ import annotations

import torch
from torch import Tensor

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
    fits = tensor.dim() == len(sizes) and all(
        isinstance(size, str) or tensor.shape[dim] == size for dim, size in enumerate(sizes)
    )
    if not fits:
        expected = ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "")
        raise ValueError(f"{op}: {name} must have shape ({expected}), got {tuple(tensor.shape)}")


def widen(tensor: Tensor) -> Tensor:
    """Return a half precision tensor as float32, any other as it is: kernels compute in float32 and float64."""
    return tensor.float() if tensor.dtype in _HALF else tensor

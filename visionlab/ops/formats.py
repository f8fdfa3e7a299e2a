"""The precision in which operators compute, and the memory format in which they answer."""

from __future__ import annotations

import torch
from torch import Tensor

from visionlab.ops.register import COMPILED_FOR_CUDA

_HALF = (torch.float16, torch.bfloat16)


def widen(tensor: Tensor) -> Tensor:
    """Return a half precision tensor as float32 unless its device has kernels for it, any other as it is."""
    return tensor.float() if tensor.dtype in _HALF and not (COMPILED_FOR_CUDA and tensor.is_cuda) else tensor


def geometry(tensor: Tensor, input: Tensor) -> Tensor:
    """Return boxes or offsets in the precision that they are computed in: float64 beside float64, else float32."""
    return cast(tensor, torch.float64 if input.dtype == torch.float64 else torch.float32)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype. On tiny inputs even a call that changes nothing takes a good share of the time."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the memory format in which an operator answers a tensor: channels-last only where it is that alone."""
    try:
        channels_last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    except RuntimeError:  # inside vmap a tensor does not say
        channels_last = False
    return torch.channels_last if channels_last else torch.contiguous_format

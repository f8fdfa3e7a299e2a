"""What must not be computed in the narrow types of autocast, and yet not narrow what is wider."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context in which autocast does not narrow what is computed on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def upcast(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is if its type is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

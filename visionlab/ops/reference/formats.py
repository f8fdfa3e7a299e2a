"""The memory format of an answer."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the memory format in which an operator answers a tensor: channels-last only where it is that alone."""
    try:
        channels_last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    except RuntimeError:  # inside vmap a tensor does not say
        channels_last = False
    return torch.channels_last if channels_last else torch.contiguous_format

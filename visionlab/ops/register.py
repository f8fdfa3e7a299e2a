"""Gives the operators to torch: compiled kernels where the library has them, the PyTorch path everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from visionlab import _native

COMPILED = _native.load()
_LIBRARY = torch.library.Library("visionlab", "FRAGMENT")


def operator(schema: str, reference: Callable[..., Any]) -> Any:
    """Return the operator ``torch.ops.visionlab.NAME``.

    Args:
        schema: its row in ``csrc/library.cpp``, which an install without the library does not have.
        reference: the same in PyTorch; runs on every device for which no kernel is compiled.
    """
    name = schema.partition("(")[0]
    if not COMPILED:
        _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    return getattr(torch.ops.visionlab, name).default

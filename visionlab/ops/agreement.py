"""Whether operators give on a device what they give elsewhere: small calls whose answers are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visionlab.ops.register import REFERENCES

TOLERANCE = 1e-4  # of the largest number; float32 sums in another order differ by some 1e-6
OPERATORS = ("roi_align", "roi_align_backward", "nms", "deform_conv2d")


def operators_with_kernels(key: str) -> set[str]:
    """Return the operators that have compiled kernels for a dispatch key of torch, ``"CPU"`` or ``"CUDA"``."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name for name in REFERENCES if has(f"visionlab::{name}", key)}


def disagreement(name: str, device: torch.device) -> str | None:
    """Run one of ``OPERATORS`` on a device and say how it fails, or None where it does not.

    What is expected is the answer of the CPU; of the CPU itself, that of plain PyTorch.
    """
    arguments = _arguments(name)
    operator = getattr(torch.ops.visionlab, name).default
    peer = "plain PyTorch" if device.type == "cpu" else "the CPU"
    expected = (REFERENCES[name] if device.type == "cpu" else operator)(*arguments)
    try:
        there = [argument.to(device) if isinstance(argument, Tensor) else argument for argument in arguments]
        got = operator(*there).cpu()
    except Exception as error:
        return f"{name} fails: {' '.join(str(error).split())}"
    if got.shape != expected.shape:
        return f"{name} gives shape {tuple(got.shape)}, {peer} gives {tuple(expected.shape)}"
    distance = float((got - expected).abs().max() / expected.abs().max())
    return None if distance <= TOLERANCE else f"{name} differs from {peer} by {distance:.2g} of the largest number"


def _arguments(name: str) -> tuple[Any, ...]:
    """Return arguments of an operator, the same ones every time."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    corners = torch.rand(64, 4, generator=generator) * 24
    corners[:, 2:] += corners[:, :2] + 1
    rois = torch.cat([torch.arange(64.0)[:, None] % 2, corners], 1)
    if name == "roi_align":
        return normal(2, 8, 24, 24), rois, 3, 3, 0.5, 2, True
    if name == "roi_align_backward":
        return normal(64, 8, 3, 3), rois, 2, 8, 24, 24, 0.5, 2, True, False, False
    if name == "nms":
        return corners, torch.rand(64, generator=generator), None, 0.3
    return normal(2, 8, 9, 9), normal(2, 18, 9, 9), normal(8, 8, 3, 3), None, None, [1, 1], [1, 1], [1, 1]

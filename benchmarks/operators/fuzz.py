"""One fuzz case: an operator called with arguments drawn from (seed, operator, number), and what its answer must be.

A tame case is right and finite: it must succeed with a finite answer. A hostile one has values that are not; a wild
one has wrong shapes, types and settings too. Those two may be refused, by a ValueError or RuntimeError that names the
operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from operators.fuzz_cases import CASES
from operators.fuzz_draw import Draw

# Operators that share a kernel name it in the faults that the kernel finds.
KERNELS = {"batched_nms": "nms", "nms_padded": "nms"}


class FuzzFailure(Exception):
    """An operator crashed, hung or answered wrongly."""


def run(op: str, seed: int, number: int, device: str = "cpu") -> str:
    """Run one case.

    Returns:
        ``"returned"`` or ``"refused"``.

    Raises:
        FuzzFailure: if the operator broke a promise.
    """
    draw = Draw(op, seed, number, device)
    call, shape = CASES[op](draw)
    kind = draw.kind
    try:
        answer = call()
        gradients = _backward(draw, answer)
    except (ValueError, RuntimeError) as error:
        if not str(error).startswith((f"{op}: ", f"{KERNELS.get(op, op)}: ")):
            raise FuzzFailure(f"{type(error).__name__} does not begin with the operator's name: {error}") from error
        if kind == "tame":
            raise FuzzFailure(f"a tame case was refused: {error}") from error
        return "refused"
    except Exception as error:
        raise FuzzFailure(f"{type(error).__name__}: {error}") from error
    if kind != "wild":
        _check(draw, answer, shape)
    if kind == "tame":
        for name, tensor in [("an answer", answer), *[("a gradient", gradient) for gradient in gradients]]:
            for part in tensor if isinstance(tensor, tuple) else (tensor,):
                if part is not None and part.is_floating_point() and not part.isfinite().all():
                    raise FuzzFailure(f"finite input gave {name} that is not")
    return "returned"


def _backward(draw: Draw, answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    outputs = [part for part in (answer if isinstance(answer, tuple) else (answer,)) if part.requires_grad]
    if not outputs or not draw.leaves:
        return ()
    if draw.chance(0.3):
        incoming = [torch.ones((), dtype=part.dtype, device=part.device).expand(part.shape) for part in outputs]
    else:
        draw.kind = "hostile" if draw.kind == "wild" else draw.kind  # autograd itself refuses a wrong shape
        incoming = [draw.tensor(*part.shape, grad=False).to(part.dtype) for part in outputs]
    return torch.autograd.grad(outputs, draw.leaves, incoming, allow_unused=True)


def _check(draw: Draw, answer: Any, shape: Callable[[Any], bool] | tuple[int, ...]) -> None:
    if callable(shape):
        if not shape(answer):
            raise FuzzFailure(f"the answer has a shape, type or range that it must not have: {answer}")
    elif tuple(answer.shape) != shape or answer.dtype != draw.dtype:
        raise FuzzFailure(f"expected {shape} {draw.dtype}, got {tuple(answer.shape)} {answer.dtype}")

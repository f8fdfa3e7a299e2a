"""What a compiler leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def eager(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """Let ``torch.compile`` leave a function as it is, with all that it calls: a single break in the graph.

    It is for what chooses: sizes that only a run knows and random numbers would break the graph in many places, and
    there is nothing in it that a compiler would make faster.
    """
    disabled: list[Callable[Parameters, Answer]] = []

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        if not disabled:
            disabled.append(torch.compiler.disable(function))  # not before, because it brings torch._dynamo
        return disabled[0](*args, **kwargs)

    return call

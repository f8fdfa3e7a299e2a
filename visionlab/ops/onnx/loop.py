"""A loop whose length is known only when the model runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def repeat_while(
    condition: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], start: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return what ``start`` has become when ``condition`` of it is no longer true."""
    # Otherwise sizes other than those of the last loop in this process become inputs, which ONNX has no form for.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        return torch._higher_order_ops.while_loop(condition, body, start)

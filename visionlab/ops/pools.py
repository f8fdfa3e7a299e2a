"""What the operators that pool boxes need beside their arithmetic: shapes for compilers, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visionlab.ops.formats import memory_format
from visionlab.ops.register import differentiable, once_differentiable


def linear_pool(pool: Any, spread: Any, position_sensitive: bool = False) -> Callable[..., Tensor]:
    """Return what calls a pool that is linear in its map, so that each of two operators is the other's gradient.

    Args:
        pool: the operator ``(map, boxes and the like…, pooled_height, pooled_width, settings…)``; the map may be a list
            of the levels of a pyramid.
        spread: the operator ``(gradient, boxes and the like…, batch, channels, height, width, settings…, channels_last,
            deterministic)``; heights and widths are lists where the map is one.
        position_sensitive: whether each bin reads channels of its own.
    """
    arguments = pool._schema.arguments
    pyramid = str(arguments[0].type) == "List[Tensor]"
    bins = [argument.name for argument in arguments].index("pooled_height")
    fake_spread(spread)

    @torch.library.register_fake(pool._schema.name)
    def fake(input: Any, *others: Any) -> Tensor:
        boxes, height, width = others[0], others[bins - 1], others[bins]
        map = input[0] if pyramid else input
        channels = map.shape[1] // (height * width) if position_sensitive else map.shape[1]
        return map.new_empty((boxes.shape[0], channels, height, width)).to(memory_format=memory_format(map))

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        maps = inputs[0] if pyramid else inputs[:1]
        ctx.save_for_backward(*inputs[1:bins])
        ctx.shape = maps[0].shape
        if pyramid:
            ctx.shape = (*ctx.shape[:2], [map.shape[2] for map in maps], [map.shape[3] for map in maps])
        ctx.settings = (*inputs[bins + 2 :], memory_format(maps[0]) == torch.channels_last)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        deterministic = torch.are_deterministic_algorithms_enabled()
        gradient = call_spread(grad, *ctx.saved_tensors, *ctx.shape, *ctx.settings, deterministic)
        return (list(gradient) if pyramid else gradient, *[None] * (len(arguments) - 1))

    def setup_spread(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:bins])
        ctx.settings = (*inputs[0].shape[2:], *inputs[bins + 4 : -2])

    def backward_spread(ctx: Any, grad: Any) -> tuple:
        return (call_pool(grad, *ctx.saved_tensors, *ctx.settings), *[None] * (len(spread._schema.arguments) - 1))

    call_pool = differentiable(pool, setup, backward)
    call_spread = differentiable(spread, setup_spread, backward_spread)
    return call_pool


def fake_spread(spread: Any) -> None:
    """Tell compilers the shape of a map's gradient, ``batch`` by ``channels`` by ``height`` by ``width``."""
    batch = [argument.name for argument in spread._schema.arguments].index("batch")

    @torch.library.register_fake(spread._schema.name)
    def fake(grad: Tensor, *others: Any) -> Any:
        *planes, heights, widths = others[batch - 1 : batch + 3]
        format = torch.channels_last if others[-2] else torch.contiguous_format
        if not isinstance(heights, list | tuple):
            return grad.new_empty((*planes, heights, widths)).to(memory_format=format)
        return [grad.new_empty((*planes, *size)).to(memory_format=format) for size in zip(heights, widths, strict=True)]


def deformable_pool(pool: Any, differentiate: Any, shape: Callable[..., tuple]) -> Callable[..., Tensor]:
    """Return what calls a pool whose bins move by an offset and are weighed by a mask.

    Args:
        pool: the operator ``(input, boxes, offset, mask, shape of the bins…, settings…)``.
        differentiate: the operator ``(gradient, input, boxes, offset, mask, settings…, input_grad, offset_grad,
            deterministic)``, which answers the gradients of input, offset and mask, empty where not wanted.
        shape: takes the arguments of ``pool`` and returns channels, height and width of the answer.
    """
    count = len(pool._schema.arguments)
    settings = len(differentiate._schema.arguments) - 8

    @torch.library.register_fake(pool._schema.name)
    def fake(input: Tensor, boxes: Tensor, *others: Any) -> Tensor:
        size = (boxes.shape[0], *shape(input, boxes, *others))
        return input.new_empty(size).to(memory_format=memory_format(input))

    @torch.library.register_fake(differentiate._schema.name)
    def fake_gradients(grad: Tensor, input: Tensor, boxes: Tensor, offset: Any, mask: Any, *others: Any) -> tuple:
        def gradient(tensor: Tensor | None, wanted: bool) -> Tensor:
            return input.new_empty((0,) if tensor is None or not wanted else tensor.shape, dtype=boxes.dtype)

        input_grad, offset_grad, _ = others[settings:]
        of_input = gradient(input, input_grad)
        if input_grad:
            of_input = of_input.to(memory_format=memory_format(input))
        return of_input, gradient(offset, offset_grad), gradient(mask, offset_grad)

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.settings = inputs[count - settings :]

    def backward(ctx: Any, grad: Tensor) -> tuple:
        input, boxes, offset, mask = ctx.saved_tensors
        input_grad, _, offset_wanted, mask_wanted, *_ = ctx.needs_input_grad
        wanted = (input_grad, offset_wanted or mask_wanted, torch.are_deterministic_algorithms_enabled())
        of_input, of_offset, of_mask = call_differentiate(grad, input, boxes, offset, mask, *ctx.settings, *wanted)
        return (
            of_input.to(input.dtype) if input_grad else None,
            None,
            of_offset if offset_wanted else None,
            of_mask if mask_wanted else None,
            *[None] * (count - 4),
        )

    call_differentiate = once_differentiable(differentiate)
    return differentiable(pool, setup, backward)

"""Gives the operators to torch: compiled kernels where the library has them, the PyTorch path everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visionlab import _native

COMPILED = _native.load()
COMPILED_FOR_CUDA = COMPILED and _native.cuda_library().loaded
REFERENCES: dict[str, Callable[..., Any]] = {}
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
    REFERENCES[name] = reference
    return getattr(torch.ops.visionlab, name).default


def differentiable(
    op: Any, setup: Callable[[Any, tuple, Any], None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Give an operator its gradient and its rule for ``vmap``, and return the function that calls it.

    Args:
        op: what ``operator`` returned; one of its arguments may be a list of tensors, and so may its answer.
        setup: takes a context, the arguments and the answer; keeps on the context what the gradient needs.
        backward: takes the context and the gradient of each answer; returns one gradient or None for each argument.

    Returns:
        A function of the operator's arguments. Compilers see the operator itself. Eager calls go through an
        ``autograd.Function``, at a fraction of the cost of the gradient that a dispatcher calls.
    """
    torch.library.register_autograd(op, backward, setup_context=setup)
    torch.library.register_vmap(op, _one_by_one(op))
    at = next((i for i, arg in enumerate(op._schema.arguments) if str(arg.type) == "List[Tensor]"), None)
    lists = str(op._schema.returns[0].type) == "List[Tensor]"
    if at is None and not lists:
        return _caller(op, setup, backward)
    return _caller_with_lists(op, setup, backward, at, lists)


def once_differentiable(op: Any) -> Callable[..., Any]:
    """Make the gradient of a backward operator an error, as it would silently be zero; return what calls it."""
    name = op._schema.name.removeprefix("visionlab::").removesuffix("_backward")

    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        return None

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{name}: double backward is not implemented")

    return differentiable(op, setup, refuse)


def _caller(
    run: Callable[..., Any], setup: Callable[[Any, tuple, Any], None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Return what calls an operator, by ``run``, on arguments none of which is a list of tensors."""

    def without_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():  # which is written in Python, and would only pass the call on
            return run(*args)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = without_autograd(*args)
            setup(ctx, args, output)
            return output

    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return run(*args)

    Eager.backward = Transformed.backward = staticmethod(backward)  # type: ignore[assignment]
    Transformed.setup_context = staticmethod(setup)  # type: ignore[assignment]

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return run(*args)
        if torch._C._are_functorch_transforms_active():
            return Transformed.apply(*args)
        if torch.autograd.forward_ad._current_level >= 0:
            return Eager.apply(*args)  # which refuses tangents, where kernels would lose them
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            return Eager.apply(*args)
        return without_autograd(*args)

    return call


def _caller_with_lists(
    op: Any, setup: Callable[[Any, tuple, Any], None], backward: Callable[..., Any], at: int | None, lists: bool
) -> Callable[..., Any]:
    """Return what calls an operator of lists of tensors, which an ``autograd.Function`` would not look into.

    Args:
        op: the operator.
        setup: as for ``differentiable``.
        backward: as for ``differentiable``.
        at: which argument is a list of tensors.
        lists: whether the answer is one.
    """

    def spread(args: tuple) -> tuple:
        return args if at is None else (*args[:at], len(args[at]), *args[at], *args[at + 1 :])

    def gather(flat: tuple) -> tuple:
        if at is None:
            return flat
        end = at + 1 + flat[at]
        return (*flat[:at], list(flat[at + 1 : end]), *flat[end:])

    def run(*flat: Any) -> Any:
        output = op(*gather(flat))
        return tuple(output) if lists else output

    def setup_flat(ctx: Any, inputs: tuple, output: Any) -> None:
        setup(ctx, gather(inputs), output)

    def backward_flat(ctx: Any, *grads: Tensor) -> tuple:
        of_args = backward(ctx, list(grads)) if lists else backward(ctx, *grads)
        return of_args if at is None else (*of_args[:at], None, *of_args[at], *of_args[at + 1 :])

    call = _caller(run, setup_flat, backward_flat)
    return lambda *args: call(*spread(args))


def _one_by_one(op: Any) -> Callable[..., Any]:
    """Return a rule for ``vmap`` that calls the operator once for each element of the batch."""

    def take(arg: Any, dim: Any, index: int) -> Any:
        if isinstance(dim, list | tuple):
            return [take(each, of_each, index) for each, of_each in zip(arg, dim, strict=True)]
        return arg.select(dim, index) if isinstance(arg, Tensor) and dim is not None else arg

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError(f"{op._schema.name}: vmap: expected at least one element, got none")
        outputs = [op(*map(take, args, in_dims, [index] * len(args))) for index in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        kind = type(outputs[0])
        return kind(map(torch.stack, zip(*outputs, strict=True))), kind(0 for _ in outputs[0])

    return rule

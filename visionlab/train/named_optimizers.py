"""Every optimizer of timm by its name there, and optimizers of one's own, with the settings that are theirs."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import field, make_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.optim import Optimizer

from visionlab.checks import check_in
from visionlab.choices import OneOf, load_object
from visionlab.settings import Settings, flat_settings
from visionlab.train.optim import OPTIMIZERS, LearningRate, WeightDecay, parameter_groups

# Arguments that change how an optimizer computes, not what; and those that groups of settings have.
_NO_SETTINGS = {
    *("lr", "weight_decay"),
    *("foreach", "fused", "capturable", "differentiable", "maximize", "verbose"),
}


@cache
def other_optimizer(name: str) -> Callable[..., Optimizer] | None:
    """Return what builds an optimizer: one of timm, or a class or function of one's own at ``package.module:Name``.

    A function of one's own takes the module that learns, and settings after the star. A class is a
    ``torch.optim.Optimizer``; what its constructor takes besides ``params`` become settings, beside the learning rate
    and weight decay of all optimizers.

    Raises:
        ValueError: there is none of that name, or it cannot be used here.
    """
    if ":" in name:
        found = load_object(name)
        return build_with(found, name) if inspect.isclass(found) and issubclass(found, Optimizer) else None
    from timm.optim import get_optimizer_info, list_optimizers  # here, because timm takes seconds to import

    if name not in list_optimizers():
        close = ", ".join(difflib.get_close_matches(name, [*OPTIMIZERS, *map(str, list_optimizers())], 3))
        hint = f"; did you mean {close}?" if close else ""
        raise ValueError(f"name: expected {' or '.join(OPTIMIZERS)} or another optimizer of timm, got '{name}'{hint}")
    info = get_optimizer_info(name)
    if isinstance(info.opt_class, str):
        raise ValueError(
            f"name: {name} needs the package {info.opt_class.partition('.')[0]}, expected another optimizer"
        )
    if info.second_order:
        raise ValueError(f"name: {name} needs second derivatives, which the training loop does not compute")
    defaults = ({"momentum": 0.9} if info.has_momentum else {}) | (info.defaults or {})
    return build_with(info.opt_class, name, defaults, info.description)


OPTIMIZER = OneOf(OPTIMIZERS, Optimizer, other_optimizer, r"^([\w.]+:[\w.]+|[a-z0-9]+)$")


def build_with(
    kind: type[Optimizer], name: str, defaults: Mapping[str, Any] | None = None, description: str = ""
) -> Callable[..., Optimizer]:
    """Return a function that builds an optimizer of a module, with the settings of the optimizer's class.

    Args:
        kind: the class.
        name: what messages call it.
        defaults: in place of the class's own.
        description: one sentence.

    Raises:
        ValueError: the optimizer's ``step`` needs more than gradients.
    """
    if any(p.default is p.empty for p in list(inspect.signature(kind.step).parameters.values())[1:]):
        raise ValueError(f"name: {name} asks for a function that computes the loss again, which the loop does not give")
    parameters = inspect.signature(kind).parameters
    decays = "weight_decay" in parameters
    own = _settings_of(kind, name, defaults or {})

    def build(module: nn.Module, *, rate: LearningRate, own: Any, decay: WeightDecay) -> Optimizer:
        return kind(parameter_groups(module, rate, decay), lr=rate.lr, **vars(own))  # type: ignore[call-arg]

    def build_without_decay(module: nn.Module, *, rate: LearningRate, own: Any) -> Optimizer:
        return build(module, rate=rate, own=own, decay=WeightDecay(weight_decay=0.0))

    build.__annotations__["own"] = build_without_decay.__annotations__["own"] = own
    build.__kwdefaults__ = (
        {"decay": WeightDecay(weight_decay=float(parameters["weight_decay"].default))} if decays else {}
    )
    function = build if decays else build_without_decay
    function.__name__ = function.__qualname__ = name
    function.__doc__ = description or inspect.getdoc(kind)
    return flat_settings(function)


def _settings_of(kind: type[Optimizer], name: str, defaults: Mapping[str, Any]) -> type[Settings]:
    """Declare what the constructor of an optimizer takes as a group of settings, which asks it what it refuses."""
    hints = get_type_hints(kind.__init__)
    rows: list[Any] = []
    for parameter in list(inspect.signature(kind).parameters.values())[1:]:
        default = defaults.get(parameter.name, parameter.default)
        annotation = _plain(hints.get(parameter.name), default)
        if annotation is not None and parameter.name not in _NO_SETTINGS:
            rows.append((parameter.name, annotation, field() if default is parameter.empty else field(default=default)))

    def ask(settings: Settings) -> None:
        given = vars(settings)
        check_in("[0, 1)", **{key: given[key] for key in ("betas", "momentum") if key in given})  # not all refuse it
        try:
            kind([nn.Parameter(torch.zeros(1, 1))], lr=1.0, **given)  # type: ignore[call-arg]
        except (ValueError, TypeError, AssertionError) as error:
            known = [row[0] for row in rows if re.search(rf"\b{row[0]}\b", str(error))]
            raise ValueError(f"{known[0] if len(known) == 1 else name}: {' '.join(str(error).split())}") from error

    doc = re.sub(r"(?m)^(\s*\w+) \([^)\n]*\):", r"\1:", inspect.getdoc(kind) or "")
    body = {"__post_init__": ask, "__doc__": doc}
    return make_dataclass(
        f"{kind.__name__}Settings", rows, bases=(Settings,), namespace=body, frozen=True, kw_only=True
    )


def _plain(hint: Any, default: Any) -> Any:
    """Return the type that a config can give for a parameter, or None if there is none."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [option for option in options if _is_plain(option)]
    if plain and plain != [NoneType]:
        return Union[tuple(plain)]  # noqa: UP007
    if isinstance(default, tuple) and default and all(isinstance(item, float) for item in default):
        return tuple[(float,) * len(default)]  # type: ignore[misc]
    return type(default) if isinstance(default, (bool, int, float, str)) else None


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) in (tuple, Literal):
        return all(_is_plain(argument) or get_origin(hint) is Literal for argument in get_args(hint))
    return hint in (bool, int, float, str, NoneType)

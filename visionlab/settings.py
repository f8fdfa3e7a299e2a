"""Groups of settings that several constructors take: declared once, given side by side with the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Any, NamedTuple, TypeVar, get_type_hints

Returned = TypeVar("Returned")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that belong together. A subclass is a frozen, keyword-only dataclass: annotations, defaults, an ``Args``
    line for each, and a ``__post_init__`` that refuses what is out of range.
    """


class Group(NamedTuple):
    """One group among the parameters of a constructor.

    Args:
        kind: what it holds.
        defaults: the values of the settings that need not be given, by name.
    """

    kind: type[Settings]
    defaults: dict[str, Any]


def flat_settings(function: Callable[..., Returned]) -> Callable[..., Returned]:
    """Let a constructor or function be called with the settings of its groups, as if each were a parameter of its own.

    A group is a keyword-only parameter annotated with a subclass of ``Settings``. Its default, if it has one, replaces
    the defaults that the subclass declares. ::

        class MoCo(Pretext):
            @flat_settings
            def __init__(self, encoder, *, crops: CropSettings = CropSettings(crop_scale=(0.2, 1.0)), queue_size=65536):
                ...

        MoCo(encoder, image_size=96, queue_size=1024)    # image_size is a setting of CropSettings

    The signature, as ``help`` and a config's schema see it, lists all settings. A group may also be given whole, by
    its own name.

    Raises:
        TypeError: two groups, or a group and a parameter, have a setting of the same name.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Group] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = _group_kind(parameter, function)
        if kind is None:
            parameters.append(parameter)
            continue
        declared = _declared_defaults(kind) if parameter.default is parameter.empty else vars(parameter.default)
        groups[parameter.name] = Group(kind, dict(declared))
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                parameter.KEYWORD_ONLY,
                default=declared.get(field.name, parameter.empty),
                annotation=hints[field.name],
            )
            for field in fields(kind)
        ]
    names = [parameter.name for parameter in parameters]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TypeError(f"{function.__qualname__}: expected each setting once, got {', '.join(repeated)} twice")

    @wraps(function)
    def call(*parts: Any, **settings: Any) -> Returned:
        for name, group in groups.items():
            own = {field.name: settings.pop(field.name) for field in fields(group.kind) if field.name in settings}
            if name not in settings:
                settings[name] = group.kind(**group.defaults | own)
            elif own:
                raise TypeError(f"{function.__qualname__}: expected {name} or its settings, got both: {', '.join(own)}")
        return function(*parts, **settings)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.groups = groups  # type: ignore[attr-defined]
    return call


def groups_of(constructor: Callable[..., Any]) -> dict[str, Group]:
    """Return the groups of a class or function that ``flat_settings`` decorates, by parameter; none of any other."""
    function = constructor.__init__ if inspect.isclass(constructor) else constructor  # type: ignore[misc]
    return getattr(function, "groups", {})


def check_groups(constructor: Callable[..., Any], settings: dict[str, Any]) -> None:
    """Refuse settings that the groups of a constructor refuse, without calling it.

    Args:
        constructor: a class or function.
        settings: keyword arguments; those that belong to no group are not looked at.

    Raises:
        ValueError: as the constructor would.
    """
    for group in groups_of(constructor).values():
        own = {field.name: settings[field.name] for field in fields(group.kind) if field.name in settings}
        group.kind(**group.defaults | own)


def _group_kind(parameter: inspect.Parameter, function: Callable[..., Any]) -> type[Settings] | None:
    """Return the subclass of ``Settings`` that a parameter is annotated with, if it is."""
    annotation = parameter.annotation
    if parameter.kind is not parameter.KEYWORD_ONLY:
        return None
    if isinstance(annotation, str):  # a name that is not known yet is no group
        annotation = getattr(inspect.unwrap(function), "__globals__", {}).get(annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _declared_defaults(kind: type[Settings]) -> dict[str, Any]:
    made = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING} | made

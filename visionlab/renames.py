"""Settings by the names that earlier versions had for them: read, and moved to where they stand today."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

Returned = TypeVar("Returned")


def moved_settings(
    section: str, names: Mapping[str, str]
) -> Callable[[Callable[..., Returned]], Callable[..., Returned]]:
    """Let a constructor be called with settings that now stand in a section of their own, side by side with the others.

    The signature lists the section alone. ::

        class FastRCNNHead(RoIHead):
            @moved_settings("pool", {"pool_size": "output_size"})
            def __init__(self, *, pool={"name": "roi_align"}): ...

        FastRCNNHead(pool_size=3)  # pool={"name": "roi_align", "output_size": 3}

    Args:
        section: the setting that holds them; its default is what they are added to.
        names: their names of today by those that they had.
    """

    def decorate(function: Callable[..., Returned]) -> Callable[..., Returned]:
        @wraps(function)
        def call(*parts: Any, **settings: Any) -> Returned:
            return function(*parts, **current_settings(call, settings))

        call.moved = (section, names)  # type: ignore[attr-defined]
        return call

    return decorate


def moved_keys(constructor: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return for each setting by an older name the section that it stands in today, and its name there.

    Args:
        constructor: a class or function that ``moved_settings`` decorates, or any other.
        settings: its settings.
    """
    function: Any = constructor.__init__ if inspect.isclass(constructor) else constructor  # type: ignore[misc]
    section, names = getattr(function, "moved", ("", {}))
    return {old: (section, new) for old, new in names.items() if old in settings}


def check_moved(constructor: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Refuse settings by an older name beside the section that they stand in today.

    Raises:
        ValueError: ``name: expected …, got …``.
    """
    for old, (section, new) in moved_keys(constructor, settings).items():
        if section in settings:
            raise ValueError(f"{old}: expected it as {section}.{new} where {section} is given, got both")


def current_settings(constructor: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names of today.

    Args:
        constructor: as ``moved_keys`` takes it.
        settings: keyword arguments for it, by any names that it had.

    Raises:
        ValueError: a setting is given in both ways.
    """
    check_moved(constructor, settings)
    moved = moved_keys(constructor, settings)
    current = {key: value for key, value in settings.items() if key not in moved}
    for old, (section, new) in moved.items():
        current.setdefault(section, section_default(constructor, section))[new] = settings[old]
    return current


def section_default(constructor: Callable[..., Any], section: str) -> dict[str, Any]:
    """Return a copy of what a section of a constructor holds when it is not given."""
    return dict(inspect.signature(constructor).parameters[section].default)

"""Parts that are chosen by name: from a table of constructors, or by where a constructor of one's own stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints


@dataclass(frozen=True, eq=False)
class OneOf:
    """Says in an annotation that a setting is a section of its own, whose key ``name`` chooses from a table. ::

        POOL = OneOf(POOLS)

        class FastRCNNHead(RoIHead):
            def __init__(self, channels, *, pool: Annotated[dict[str, Any], POOL] = {"name": "roi_align"}):
                self.pool = POOL.build("pool", pool, strides)

    A config then has ``head: {pool: {name: roi_align, pool_size: 7}}``, with the settings, help and faults of what is
    chosen. ``Annotated[dict[str, Any] | None, POOL] = None`` makes a section that may be left out.

    Args:
        table: constructors by name; what stands after the star of each are the settings of the section.
    """

    table: Mapping[str, Callable[..., Any]]

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a section with the defaults of those that are not given, ``name`` first."""
        parameters = inspect.signature(self._constructor(settings)).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        return {"name": settings["name"]} | defaults | dict(settings)

    def build(self, key: str, settings: Mapping[str, Any], *parts: Any) -> Any:
        """Call what a section chooses.

        Args:
            key: what the setting is called, for messages.
            settings: ``name``, and the settings of what it chooses.
            parts: what the program gives the constructor.

        Raises:
            ValueError: the table has no such name, or the constructor refuses its settings; the message begins with
                the keys that lead to what is wrong.
        """
        try:
            return self._constructor(settings)(*parts, **{k: v for k, v in settings.items() if k != "name"})
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from error

    def _constructor(self, settings: Mapping[str, Any]) -> Callable[..., Any]:
        name: Any = settings.get("name")
        if name not in self.table:
            raise ValueError(f"name: expected one of {', '.join(self.table)}, got {name!r}")
        return self.table[name]


def choices_of(constructor: Callable[..., Any]) -> dict[str, OneOf]:
    """Return the settings of a constructor or function that are choices from a table, by name."""
    function = inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor)  # type: ignore[misc]
    return {
        name: choice
        for name, kind in get_type_hints(function, include_extras=True).items()
        for choice in getattr(kind, "__metadata__", ())
        if isinstance(choice, OneOf)
    }

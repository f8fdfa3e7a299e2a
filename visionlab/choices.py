"""Parts that are chosen by name: from a table of constructors, or by where a constructor of one's own stands."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

Constructor = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class OneOf:
    """What a name may choose: a row of a table, or a class or function of one's own, as ``package.module:Class``.

    In an annotation it says that a setting is a section of its own. ::

        POOL = OneOf(POOLS)

        class FastRCNNHead(RoIHead):
            def __init__(self, channels, *, pool: Annotated[dict[str, Any], POOL] = {"name": "roi_align"}):
                self.pool = POOL.build("pool", pool, strides)

    A config then has ``head: {pool: {name: roi_align, pool_size: 7}}``, with the settings, help and faults of what is
    chosen. ``Annotated[dict[str, Any] | None, POOL] = None`` makes a section that may be left out.

    Args:
        table: constructors by name; what stands after the star of each are the settings of the section.
        kind: what a class of one's own is a subclass of.
        others: finds constructors of names that the table does not have; None where it knows none.
        pattern: what all names beside those of the table match.
    """

    table: Mapping[str, Constructor]
    kind: type = object
    others: Callable[[str], Constructor | None] = lambda name: None
    pattern: str = r"^[\w.]+:[\w.]+$"

    def find(self, name: str) -> Constructor:
        """Return the constructor that a name chooses.

        Raises:
            ValueError: there is none of that name, or it is of another kind.
        """
        found = self.table.get(name) or self.others(name)
        if found is None and ":" in name:
            found = load_object(name)
            if inspect.isclass(found) and not issubclass(found, self.kind):
                raise ValueError(f"name: expected a subclass of {self.kind.__name__}, got {name}")
            if not (inspect.isclass(found) or inspect.isfunction(found)):  # of builtins no settings can be read
                raise ValueError(f"name: expected a class or function of Python, got {name}, a {type(found).__name__}")
        if found is None:
            raise ValueError(f"name: expected {' or '.join(self.table)}, got '{name}'")
        return found

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a section with the defaults of those that are not given, ``name`` first."""
        parameters = inspect.signature(self.find(settings.get("name", ""))).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        return {"name": settings["name"]} | defaults | dict(settings)

    def build(self, key: str, settings: Mapping[str, Any], *parts: Any) -> Any:
        """Call what a section chooses.

        Args:
            key: what the setting is called, for messages.
            settings: ``name``, and the settings of what it chooses.
            parts: what the program gives the constructor.

        Raises:
            ValueError: there is nothing of that name, or the constructor refuses its settings; the message begins with
                the keys that lead to what is wrong.
        """
        try:
            constructor = self.find(settings.get("name", ""))
            return constructor(*parts, **{name: value for name, value in settings.items() if name != "name"})
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from error


def choices_of(constructor: Callable[..., Any]) -> dict[str, OneOf]:
    """Return the settings of a constructor or function that are choices from a table, by name."""
    function = inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor)  # type: ignore[misc]
    return {
        name: choice
        for name, kind in get_type_hints(function, include_extras=True).items()
        for choice in getattr(kind, "__metadata__", ())
        if isinstance(choice, OneOf)
    }


def load_object(path: str) -> Any:
    """Import what stands at ``package.module:Name``.

    Raises:
        ValueError: there is no such module, it cannot be imported, or nothing in it is called so.
    """
    module_name, _, name = path.partition(":")
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's own: it may raise anything
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"name: {path} cannot be imported: {type(error).__name__}: {text}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, [known for known in vars(found) if known[0] != "_"], n=1)
            hint = f". Did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"name: expected something called '{part}' in {module_name}, there is none{hint}")
        found = getattr(found, part)
    return found

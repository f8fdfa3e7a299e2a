"""The arguments of one command, in any order: files and overrides stand before, between or after options."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple


class Default(NamedTuple):
    """The default of a function's parameter, which is looked up when a help text or the command needs it.

    Args:
        module: the function's module, which may take seconds to import.
        function: its name.
        parameter: which of its parameters.
    """

    module: str
    function: str
    parameter: str

    @property
    def value(self) -> Any:
        """What the function takes where nothing is given."""
        function = getattr(import_module(self.module), self.function)
        return inspect.signature(function).parameters[self.parameter].default

    def __str__(self) -> str:
        value = self.value
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Command(argparse.ArgumentParser):
    """Reads ``CONFIG --option value key=value`` and ``CONFIG key=value --option value`` alike."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read positional arguments wherever they stand; argparse itself wants them side by side."""
        if self._within:  # called again by the reader of mixed arguments
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(self._overrides_first(args or []), namespace)
        finally:
            self._within = False

    def _overrides_first(self, words: Sequence[str]) -> list[str]:
        """Put overrides in front that an option for several values would take for its own."""
        options = {text: action for action in self._actions for text in action.option_strings}
        takes_several = False
        overrides: list[str] = []
        others: list[str] = []
        for word in words:
            if word.startswith("-"):
                takes_several = word in options and options[word].nargs in ("+", "*")
            is_override = takes_several and re.match(r"[A-Za-z_][\w.]*=", word)
            (overrides if is_override else others).append(word)
        return overrides + others

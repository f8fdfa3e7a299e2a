"""YAML that knows where each key stands: a config's text, before anything is known of what it may say."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from visionlab.config.faults import Keys, quote


class ConfigError(ValueError):
    """A config that cannot run; its text is one line for each fault.

    Args:
        faults: ``file:line: path.to.key: what, expected, got``, or the override in place of file and line.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Place(NamedTuple):
    """Where a setting stands. Places sort as a reader meets them: the file's lines, then the overrides."""

    is_override: bool
    line: int
    text: str


class Fault(NamedTuple):
    """What is wrong somewhere."""

    place: Place
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place.text, self.key, self.what) if part)


class Document:
    """What a config says, where it says it, and what is wrong so far.

    Args:
        file: the YAML file, as messages name it.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.data: Any = {}
        self.places: dict[Keys, Place] = {(): self._line(1)}
        self.faults: list[Fault] = []
        self._written: dict[Keys, Keys] = {}

    def read(self) -> None:
        """Read the file.

        Raises:
            ConfigError: there is nothing in which to look for more faults.
        """
        try:
            node = yaml.compose(Path(self.file).read_text(encoding="utf-8"), Loader=_Loader)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError([f"{self.file}: cannot be read, expected a YAML file: {reason}"]) from None
        except yaml.YAMLError as error:
            line, reason = _reason(error)
            raise ConfigError([f"{self.file}:{line}: not YAML: {reason}"]) from None
        if not isinstance(node, yaml.MappingNode):
            got = "nothing" if node is None else f"a {node.id}"
            raise ConfigError([f"{self.file}:1: expected a mapping (key: value), got {got}"])
        self.data = self._value(node, (), set())

    def override(self, text: str) -> None:
        """Set what one ``path.to.key=value`` says."""
        place = Place(True, 0, f'override "{text}"')
        key, equals, value = text.partition("=")
        keys = tuple(key.split("."))
        if not equals or not all(keys):
            self._fault(place, (), "expected key=value, for example optimizer.lr=0.1")
            return
        try:
            node = yaml.compose(value, Loader=_Loader)
        except yaml.YAMLError as error:
            self._fault(place, keys, f"not YAML: {_reason(error)[1]}")
            return
        self._set(keys, node, place)

    def move(self, old: Keys, new: Keys) -> None:
        """Put a value where it stands today; messages name it as it is written.

        Args:
            old: the keys that lead to it.
            new: the keys to lead to it, one more than ``old``, in the same section.
        """
        container = reduce(getitem, old[:-1], self.data)
        container.setdefault(new[-2], {})[new[-1]] = container.pop(old[-1])
        for keys in [keys for keys in self.places if keys[: len(old)] == old]:
            self.places[new + keys[len(old) :]] = self.places.pop(keys)
        self._written[new] = old

    def fault(self, keys: Keys, what: str) -> None:
        """Note what is wrong at the keys, or where they would stand."""
        depth = next(depth for depth in range(len(keys), -1, -1) if keys[:depth] in self.places)
        self._fault(self.places[keys[:depth]], self._written.get(keys, keys), what)

    def _set(self, keys: Keys, node: yaml.Node | None, place: Place) -> None:
        container = self.data
        path: Keys = ()
        for name in keys:
            if isinstance(container, list) and str(name).isdigit() and int(name) < len(container):
                name = int(name)
            elif not isinstance(container, dict):
                self._fault(place, keys, f"no such place, {'.'.join(map(str, path))} is {quote(container)}")
                return
            path = (*path, name)
            if len(path) == len(keys):
                break
            if isinstance(container, dict) and container.get(name) is None:
                container[name] = {}
                self.places[path] = place
            container = container[name]
        self.places = {old: where for old, where in self.places.items() if old[: len(path)] != path}
        self.places[path] = place
        container[path[-1]] = None if node is None else self._value(node, path, set(), place)

    def _value(self, node: yaml.Node, keys: Keys, seen: set[int], place: Place | None = None) -> Any:
        """Return what a node says; note the places and faults inside it, or one place for all."""
        here = place or self._line(node.start_mark.line + 1)
        if id(node) in seen:
            self._fault(here, keys, "an alias (*name) repeats another value, expected the value itself")
            return None
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys, seen, place)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                inside = (*keys, index)
                self.places[inside] = place or self._line(item.start_mark.line + 1)
            return [self._value(item, (*keys, index), seen, place) for index, item in enumerate(node.value)]
        try:
            return _CONVERT[node.tag.removeprefix(_TAG)](node.value)
        except (KeyError, ValueError):
            self._fault(here, keys, f"expected a number, text, true, false or null, got {node.tag} {node.value}")
            return None

    def _mapping(self, node: yaml.MappingNode, keys: Keys, seen: set[int], place: Place | None) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, item in node.value:
            here = place or self._line(key_node.start_mark.line + 1)
            inside = (*keys, key_node.value)
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(here, keys, f"expected text as a key, got a {key_node.id}")
            elif key_node.value in values:
                self._fault(here, inside, f"duplicate key, it stands at {self.places[inside].text} too")
            else:
                self.places[inside] = here
                values[key_node.value] = self._value(item, inside, seen, place)
        return values

    def _fault(self, place: Place, keys: Keys, what: str) -> None:
        self.faults.append(Fault(place, ".".join(map(str, keys)), what))

    def _line(self, line: int) -> Place:
        return Place(False, line, f"{self.file}:{line}")


def to_yaml(data: dict[str, Any]) -> str:
    """Return YAML that ``Document`` reads as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _reason(error: yaml.YAMLError) -> tuple[int, str]:
    """Return the line and the reason of broken YAML."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return (mark.line + 1, f"{reason} (column {mark.column + 1})") if mark else (1, reason)


# --- The core schema of YAML 1.2, where PyYAML has 1.1's: `1e-3` is a number; `yes`, `1:30`, `2020-01-01` are text ---

_TAG = "tag:yaml.org,2002:"
_PATTERNS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_CONVERT: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0) if text[:2] in ("0x", "0o") else int(text),
    "float": lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_float(self, value: float) -> yaml.Node:
        text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
        return self.represent_scalar(f"{_TAG}float", text)

    def represent_list(self, value: list | tuple) -> yaml.Node:
        return self.represent_sequence(f"{_TAG}seq", value, flow_style=True)


for _name, (_pattern, _first) in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Dumper.add_representer(float, _Dumper.represent_float)
for _sequence in (list, tuple):
    _Dumper.add_representer(_sequence, _Dumper.represent_list)

"""What is wrong with a config, in sentences: where, what, expected, got."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from visionlab.config.epochs import steps_of_epochs
from visionlab.config.part import From

Keys = tuple[str | int, ...]

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "null", Any: "any value"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def explain(error: ValidationError, kind: Any, data: Any) -> Iterator[tuple[Keys, str]]:
    """Say what pydantic found wrong.

    Args:
        error: what validation of ``data`` raised.
        kind: the type that ``data`` was validated as.
        data: what the config says.

    Yields:
        The keys that lead to a fault, and the fault; one for each place, however many alternatives failed there.
    """
    found = (_explain(item["type"], item["msg"], item["loc"], kind, data) for item in error.errors(include_url=False))
    yield from dict.fromkeys(found)


def corrections(error: ValidationError, kind: Any, data: Any) -> Iterator[tuple[Keys, str]]:
    """Yield what a config probably means where it misspells a choice between sections, with the keys that lead there.

    Args:
        error: what validation of ``data`` raised.
        kind: the type that ``data`` was validated as.
        data: what the config says.
    """
    for item in error.errors(include_url=False):
        if item["type"] == "union_tag_invalid":
            keys, here, value = _follow(item["loc"], kind, data)
            key, choices = next(iter(_tags(here).items()))
            yield from (((*keys, key), choice) for choice in _closest(value[key], choices))


def _explain(fault: str, message: str, location: Keys, kind: Any, data: Any) -> tuple[Keys, str]:
    keys, kind, value = _follow(location, kind, data)
    if fault == "own_part":
        return (*keys, "name"), message
    if fault == "extra_forbidden":
        allowed = [name for section in _sections(kind, value) for name in section.model_fields]
        keys = (*keys, location[-1])
        if location[-1] == "epochs" and "steps" in allowed:
            return keys, f"unknown key. A run is counted in steps: {steps_of_epochs(value['epochs'], data)}"
        return keys, f"unknown key. {_did_you_mean(location[-1], allowed)}Keys here: {', '.join(allowed)}"
    if fault == "missing":
        meaning = (kind.description or "").rstrip(".") if isinstance(kind, FieldInfo) else ""
        return keys, f"missing, expected {describe(kind)}{f' ({meaning})' if meaning else ''}"
    if fault.startswith("union_tag") and isinstance(value, Mapping):
        key, choices = next(iter(_tags(kind).items()))
        if key not in value:
            return (*keys, key), f"missing, expected one of {', '.join(choices)}"
        return (*keys, key), _wrong_choice(value[key], choices)
    literals = [option for kind in _options(kind) if get_origin(kind) is Literal for option in get_args(kind)]
    if fault == "literal_error" and len(literals) > 1 and isinstance(value, str):
        return keys, _wrong_choice(value, literals)
    return keys, f"wrong value, expected {describe(kind)}, got {quote(value)}"


def _wrong_choice(value: Any, choices: list[Any]) -> str:
    expected = ", ".join(str(choice) for choice in choices)
    return f"unknown choice, expected one of {expected}, got {quote(value)}. {_did_you_mean(value, choices)}".rstrip()


def _did_you_mean(word: Any, choices: list[Any]) -> str:
    return "".join(f'Did you mean "{choice}"? ' for choice in _closest(word, choices))


def _closest(word: Any, choices: list[Any]) -> list[str]:
    """Return the choice that is spelled most alike, or none."""
    return difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)


def quote(value: Any) -> str:
    """Return a value of a config as a message shows it, at most 60 characters long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe(kind: Any) -> str:
    """Return what a type accepts, in the words of a config's author.

    Args:
        kind: a type, or a field of a pydantic model.
    """
    for key, choices in _tags(kind).items():
        return f"a section with {key}: one of {', '.join(choices)}"
    words = dict.fromkeys(_describe_option(option) for option in _options(kind))
    if _WORDS[float] in words:
        words.pop(_WORDS[int], None)
    return " or ".join(words) + _describe_bounds(kind)


def _describe_option(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({', '.join(describe(argument) for argument in arguments)})"
    if origin in (list, tuple):
        return f"a list (each {describe(arguments[0])})"
    if origin is dict or kind is dict:
        return "a mapping (key: value)"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        required = [name for name, field in kind.model_fields.items() if field.is_required()]
        return f"a section{' with ' if required else ''}{', '.join(required)}"
    return _WORDS.get(kind, str(kind))


def _describe_bounds(kind: Any) -> str:
    bounds = [
        f"{sign} {getattr(m, name)}" for m in _metadata(kind) for name, sign in _BOUNDS.items() if hasattr(m, name)
    ]
    return " " + " and ".join(bounds) if bounds else ""


def _metadata(kind: Any) -> tuple[Any, ...]:
    """Return what an annotation says beside the type."""
    if isinstance(kind, FieldInfo):
        return tuple(kind.metadata)
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()


def _bare(kind: Any) -> Any:
    """Return a type without what an annotation says beside it."""
    if isinstance(kind, FieldInfo):
        return kind.annotation
    return get_args(kind)[0] if _metadata(kind) else kind


def _options(kind: Any) -> list[Any]:
    """Return the alternatives of a type; a section that is read off constructors counts as one for each of them."""
    for item in _metadata(kind):
        if isinstance(item, From):
            return list(item.parts)
    bare = _bare(kind)
    if get_origin(bare) in (Union, UnionType):
        return [option for argument in get_args(bare) for option in _options(argument)]
    return [bare]


def _tags(kind: Any) -> dict[str, list[str]]:
    """Return the key that chooses between the sections of ``kind``, with its choices."""
    tags: dict[str, list[str]] = {}
    for section in _options(kind):
        for key, tag in _tag(section).items():
            tags.setdefault(key, []).append(tag)
    return tags


def _tag(section: Any) -> dict[str, str]:
    """Return the key and value by which a section is chosen: its first field, if that can hold one value only."""
    if not (isinstance(section, type) and issubclass(section, BaseModel) and section.model_fields):
        return {}
    key, field = next(iter(section.model_fields.items()))
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return {key: values[0]} if len(values) == 1 else {}


def _sections(kind: Any, value: Any) -> list[type[BaseModel]]:
    """Return the sections of ``kind`` that ``value`` chooses."""
    if own := _own_section(kind, value):
        return [own]
    sections = [option for option in _options(kind) if isinstance(option, type) and issubclass(option, BaseModel)]
    if len(sections) > 1 and isinstance(value, Mapping):
        return [
            s for s in sections for key, tag in _tag(s).items() if value.get(key, s.model_fields[key].default) == tag
        ]
    return sections if len(sections) == 1 else []


def _own_section(kind: Any, value: Any) -> type[BaseModel] | None:
    """Return the section that ``value`` chooses beside the tables, if it does and there is one."""
    for item in _metadata(kind):
        if isinstance(item, From):
            try:
                return item.own(value)
            except ValueError:
                return None
    return next(filter(None, (_own_section(option, value) for option in get_args(_bare(kind)))), None)


def _follow(location: Keys, kind: Any, value: Any) -> tuple[Keys, Any, Any]:
    """Walk pydantic's location down the data; it also names alternatives of unions, which a config does not have.

    Returns:
        The keys that exist in the config (or are missing from it), with the type and the value there.
    """
    keys: Keys = ()
    for key in location:
        inside = _inside(kind, value, key)
        if inside is not None:
            kind, keys = inside, (*keys, key)
            value = value[key] if isinstance(key, int) else value.get(key)
        elif not any(key in _tag(section).values() for section in _sections(kind, value)):
            break
    return keys, kind, value


def _inside(kind: Any, value: Any, key: str | int) -> Any:
    """Return the type of ``value[key]``; None if ``value`` has no such place."""
    for option in _options(kind):
        origin, arguments = get_origin(option), get_args(option)
        if origin in (list, tuple) and isinstance(value, list) and isinstance(key, int) and key < len(value):
            each = origin is list or arguments[-1] is Ellipsis
            return arguments[0] if each else arguments[key] if key < len(arguments) else None
        if origin is dict and isinstance(value, dict) and key in value:
            return arguments[1]
    for section in _sections(kind, value):
        if key in section.model_fields:
            return section.model_fields[str(key)]
    return None

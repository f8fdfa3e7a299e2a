"""A config file and its ``key=value`` overrides, read and checked: a run, or every fault at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from visionlab.config.document import ConfigError, Document, to_yaml
from visionlab.config.faults import corrections, explain
from visionlab.config.schema import Run
from visionlab.models.detector import DEFAULT_HEAD, HEAD
from visionlab.renames import check_moved, moved_keys, section_default

__all__ = ["ConfigError", "json_schema", "load", "show"]


def load(path: str | Path, overrides: Iterable[str] = (), kind: Any = Run) -> Any:
    """Read a config.

    Args:
        path: a YAML file.
        overrides: ``path.to.key=value``, the value in YAML; the later wins.
        kind: what the config must be.

    Returns:
        The run, frozen and checked.

    Raises:
        ConfigError: with every fault found.
    """
    document = Document(str(path))
    document.read()
    for override in overrides:
        document.override(override)
    _move_settings(document)
    run = _validate(document, kind)
    # What settings mean to each other can be said only once each is right by itself.
    if run is not None and not document.faults:
        for key, what in run.conflicts():
            document.fault(tuple(key.split(".")), what)
    if document.faults:
        raise ConfigError([str(fault) for fault in sorted(set(document.faults))])
    return run


def _move_settings(document: Document) -> None:
    """Put the settings of a head that stood elsewhere in earlier versions where they stand today."""
    head = document.data.get("head")
    if not isinstance(head, dict):
        return
    try:
        constructor = HEAD.find(str(head.get("name", DEFAULT_HEAD)))
    except ValueError:
        return  # whoever reads the section says so
    moved = moved_keys(constructor, head)
    try:
        check_moved(constructor, head)
    except ValueError as error:
        setting, _, what = str(error).partition(": ")
        document.fault(("head", setting), what)
        for old in moved:
            del head[old]
        return
    for section in {section for section, _ in moved.values()}:
        head[section] = section_default(constructor, section)
    for old, new in moved.items():
        document.move(("head", old), ("head", *new))


def _validate(document: Document, kind: Any) -> Any:
    """Return what a config says, if it can be that; note the faults, also of sections whose choice is misspelt."""
    data = document.data
    while True:
        try:
            return TypeAdapter(kind).validate_json(json.dumps(data))
        except ValidationError as error:
            for keys, what in explain(error, kind, data):
                document.fault(keys, what)
            meant = list(corrections(error, kind, data))
        if not meant:
            return None
        data = deepcopy(data)
        for keys, choice in meant:
            reduce(getitem, keys[:-1], data)[keys[-1]] = choice


def show(run: Any) -> str:
    """Return a run as the YAML that loads to it, defaults included."""
    return to_yaml(run.model_dump())


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of all configs, for editors."""
    return {"title": "visionlab config", **TypeAdapter(Run).json_schema()}

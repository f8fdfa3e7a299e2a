"""Every whole-number setting of every section, one after the other made huge: run as a program, in little memory."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from visionlab.config.load import ConfigError, load
from visionlab.config.part import From
from visionlab.config.schema import Detect, Pretrain

SECONDS = 10
SHARED: dict[str, Any] = {
    "out": "runs/a",
    "loader": {"batch_size": 8},
    "train": {"steps": 10},
    "optimizer": {"name": "sgd", "lr": 0.1},
}
BASE: dict[type, dict[str, Any]] = {
    Pretrain: SHARED
    | {"task": "pretrain", "data": {"name": "folder", "root": "images"}, "pretext": {"name": "rotation"}},
    Detect: SHARED
    | {
        "task": "detect",
        "data": {"name": "coco", "annotations": "a.json", "images": "images", "val_annotations": "v.json"},
        "weights": "file",
    },
}


def numbers(section: type[BaseModel]) -> list[str]:
    """Return the settings of a section that may be a whole number."""
    fields = section.model_fields.items()
    return [name for name, field in fields if int in (field.annotation, *get_args(field.annotation))]


def given(part: type[BaseModel], base: dict[str, Any]) -> dict[str, Any]:
    """Return a section that names a part and gives what it needs."""
    needed = {name: field.annotation for name, field in part.model_fields.items() if field.is_required()}
    examples: dict[Any, Any] = {int: 1, str: "x", list[int]: [3]}
    settings = {name: examples[kind] for name, kind in needed.items() if kind in examples}
    settings |= {name: value for name, value in base.items() if name in part.model_fields}
    if part.chosen_by_name:
        settings["name"] = get_args(part.model_fields["name"].annotation)[0]
    return settings


def cases() -> Iterator[tuple[dict[str, Any], str]]:
    """Yield a config and an override of it that makes one setting huge."""
    for kind, base in BASE.items():
        for key, field in kind.model_fields.items():
            for source in (item for item in field.metadata if isinstance(item, From)):
                for part in source.parts:
                    config = base | {key: given(part, base.get(key, {}))}
                    yield from ((config, f"{key}.{name}={10**digits}") for name in numbers(part) for digits in (11, 30))


def main() -> None:
    """Check all configs; print those that took long, or ended otherwise than by a sentence."""
    import timm  # noqa: F401 - so that the limit is on what checks take, not on imports
    import torch._dynamo  # noqa: F401

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)
    count = 0
    for config, override in cases():
        Path("a.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        start = perf_counter()
        signal.alarm(SECONDS)  # ends the program
        try:
            load("a.yaml", [override])
        except ConfigError:
            pass
        except Exception as error:
            print(f"{config} {override}: {type(error).__name__} {error}")
        signal.alarm(0)
        count += 1
        if perf_counter() - start > SECONDS / 2:
            print(f"{config} {override}: took {perf_counter() - start:.1f} s")
    print(f"{count} checked")


if __name__ == "__main__":
    main()

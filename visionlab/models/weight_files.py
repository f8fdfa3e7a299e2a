"""Files of weights, whoever wrote them: which of their dictionaries of tensors fits, and under which prefix."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionlab.models.tensor_file import read_tensors


def read_weights(path: str | Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read a file of weights without running code from it.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote.

    Returns:
        What the file holds, a dictionary of tensors that may hold further dictionaries, and its description, empty
        where it has none.

    Raises:
        ValueError: there is no such file, it holds more than tensors and plain values, or is damaged.
    """
    if Path(path).suffix == ".safetensors":
        return read_tensors(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # many training scripts keep their arguments so
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, LookupError, ValueError) as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path}: expected tensors only, it holds {code[1]}, which would run code") from error
        raise ValueError(f"{path}: expected a file of weights, it cannot be read as one ({one_line(error)})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return content, {}


def one_line(error: Exception) -> str:
    """Return what an error says, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def best_candidate(content: Mapping[str, Any], names: Collection[str]) -> tuple[str, str, dict[str, Tensor]]:
    """Find the tensors that a model can use.

    Args:
        content: a dictionary of tensors that may hold further dictionaries.
        names: the model's own names.

    Returns:
        Where the dictionary that fits best lay, the prefix before its names, and its tensors without that prefix.
    """
    best: tuple[int, str, str, dict[str, Tensor]] = (-1, "", "", {})
    for label, tensors in _dictionaries(content, ""):
        votes: Counter[str] = Counter()
        for key in tensors:
            parts = key.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in names:
                    votes["".join(f"{part}." for part in parts[:start])] += 1
        prefix, count = max(votes.items(), key=lambda item: item[1], default=("", 0))
        if count > best[0]:
            best = (count, label, prefix, {key.removeprefix(prefix): value for key, value in tensors.items()})
    return best[1:]


def _dictionaries(content: Mapping[str, Any], label: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield label, {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for key, value in content.items():
        if isinstance(value, Mapping) and all(isinstance(inner, str) for inner in value):
            yield from _dictionaries(value, f"{label}{key}: ")

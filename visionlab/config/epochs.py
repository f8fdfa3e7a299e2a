"""How many steps so many epochs are, for whoever counts in epochs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionlab.data.sources import DETECT_DATA, PRETRAIN_DATA


def steps_of_epochs(epochs: Any, config: Any) -> str:
    """Say how many steps so many epochs are: in numbers where the images can be counted, else as a formula.

    Args:
        epochs: what a config says.
        config: the whole config, which may be wrong anywhere.
    """
    try:
        batch_size = config["loader"]["batch_size"] * config["train"].get("accumulate", 1)
        images = _count_images(config["task"], config["data"])
        steps = max(1, round(epochs * images / batch_size))
    except Exception:  # whatever else is wrong with the config or its data is said elsewhere
        return "steps = epochs * images / (loader.batch_size * accumulate)"
    return f"{epochs} epochs of {images} images in batches of {batch_size} are steps: {steps}"


def _count_images(task: str, data: Mapping[str, Any]) -> int:
    settings = {key: value for key, value in data.items() if key != "name"}
    name = data.get("name", "auto")
    if name == "synthetic":  # to count them need not draw them
        return settings["unlabelled" if task == "pretrain" else "labelled"]
    if task == "pretrain":
        return len(PRETRAIN_DATA[name](**settings))
    with tempfile.TemporaryDirectory() as folder:
        return len(DETECT_DATA[name](Path(folder), **settings).train)

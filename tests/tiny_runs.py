"""Runs so small that one takes a second, and the command line that starts them."""

import json
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from visionlab.cli import main

DATA = {"name": "synthetic", "unlabelled": 12, "labelled": 6, "validation": 4, "image_size": 64}
PRETRAIN: dict[str, Any] = {
    "task": "pretrain",
    "device": "cpu",
    "pretext": {"name": "rotation", "image_size": 32},
    "backbone": {"name": "resnet18", "options": {"channels": [8, 16, 32, 64]}},
    "loader": {"batch_size": 4, "workers": 0},
    "train": {"steps": 3},
    "optimizer": {"name": "sgd", "lr": 0.01},
    "log": {"every": 1},
}
DETECT: dict[str, Any] = {
    "task": "detect",
    "device": "cpu",
    "transform": {"short_side": 48, "max_size": 48},
    "backbone": PRETRAIN["backbone"],
    "neck": {"name": "fpn", "channels": 8},
    "rpn": {
        "anchor_sizes": [[8], [16], [24], [32], [48]],
        "samples_per_image": 16,
        "train_proposals": 30,
        "test_proposals": 20,
    },
    "head": {"fc_channels": 16, "samples_per_image": 16, "canonical_size": 32},
    "loader": {"batch_size": 2, "workers": 0},
    "train": {"steps": 3, "clip_norm": 10},
    "optimizer": {"name": "sgd", "lr": 0.01},
    "log": {"every": 1},
}
# What differs in a run with another head.
OTHER_HEADS: dict[str, dict[str, Any]] = {
    "rfcn": {
        "backbone": {**PRETRAIN["backbone"], "output_stride": 16},
        "neck": {"name": "single_level"},
        "rpn": {**DETECT["rpn"], "anchor_sizes": [[8, 16, 24, 32, 48]]},
        "head": {
            "name": "rfcn",
            "samples_per_image": 16,
            "map_channels": 16,
            "pool": {"name": "ps_roi_pool", "output_size": 3},
        },
    },
    "res5": {
        "backbone": {**PRETRAIN["backbone"], "roi_stage": True},
        "neck": {"name": "single_level"},
        "rpn": {**DETECT["rpn"], "anchor_sizes": [[8, 16, 24, 32, 48]]},
        "head": {"name": "res5", "samples_per_image": 16, "pool": {"name": "roi_align", "output_size": 4}},
    },
}


def write_config(folder: Path, config: dict[str, Any], name: str = "", **sections: Any) -> Path:
    """Write a config whose run folder is ``folder/NAME`` and whose data are drawn, once, in ``folder/data``."""
    name = name or config["task"]
    path = folder / f"{name}.yaml"
    whole = {"out": str(folder / name), "data": DATA | {"root": str(folder / "data")}, **config, **sections}
    path.write_text(yaml.safe_dump(whole))
    return path


def visionlab(*words: object) -> int:
    """Give a command in this process, and return its exit status."""
    return main([str(word) for word in words])


def read_file(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the description and the tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log without the numbers that a clock gave."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ("time", "images_per_second", "data_wait")}
        for row in rows
    ]

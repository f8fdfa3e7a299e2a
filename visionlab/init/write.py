"""A first pair of configs for the images of a folder: to pretrain on them, and to train a detector."""

from __future__ import annotations

import math
import os
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from visionlab.data.looks import Progress
from visionlab.distributed import choose_device
from visionlab.init import rules
from visionlab.init.rules import CPU, GPU, Budget, Choice
from visionlab.init.survey import Survey, survey

WIDTH = 120


@dataclass(frozen=True)
class Written:
    """What was found, and what was written.

    Args:
        survey: what was found.
        files: the configs, in the order in which they are run.
    """

    survey: Survey
    files: list[Path]

    def __str__(self) -> str:
        found = self.survey
        lines = [*found.notes]
        if found.objects is None:
            lines.append("no labelled objects: a config for pretraining alone")
        lines += [f"written: {file}" for file in self.files]
        return "\n".join([*lines, "", *(f"visionlab train {shlex.quote(str(file))}" for file in self.files)])


def init(
    root: str,
    out: Path | None = None,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: Progress | None = None,
) -> Written:
    """Look at the images of a folder, and write configs for them.

    Args:
        root: the folder, in any layout that ``data: {root: …}`` reads.
        out: the folder for ``pretrain.yaml``, ``detect.yaml`` and their runs; by default ``runs/<name of root>``.
        device: what the runs are to fit; auto takes a GPU where there is one.
        progress: called with the number of images looked at and their total.

    Raises:
        ValueError: there is nothing to train on, or a config is there already.
    """
    folder = Path(out) if out is not None else Path("runs", os.path.basename(os.path.abspath(root)))
    if "=" in str(folder):
        raise ValueError(f"out: expected a folder without '=' in its name, which would be an override, got {folder}")
    names = [folder / name for name in ("pretrain.yaml", "detect.yaml")]
    for file in names:
        if file.exists():
            raise ValueError(f"{file}: is there already; expected a folder without it, such as --out another")
    budget = CPU if choose_device(device).type == "cpu" else GPU
    found = survey(root, progress)
    texts = [pretrain_config(found, folder, budget)]
    if found.objects is not None:
        texts.append(detect_config(found, folder, budget))
    folder.mkdir(parents=True, exist_ok=True)
    files = names[: len(texts)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    return Written(found, files)


def pretrain_config(found: Survey, folder: Path, budget: Budget) -> str:
    """Return the config that pretrains a backbone on what was found, runs in ``folder``."""
    network = rules.backbone(budget)
    about = (
        f"SimCLR (Chen et al. 2020, arXiv:2002.05709) on {found.images} images, chosen by `visionlab init` for"
        f" {budget.device}. With network access `weights: timm` starts from ImageNet instead of random weights."
    )
    sections = {"data": Choice({"root": found.root}, ""), "backbone": network, **rules.pretrain_training(found, budget)}
    return _config("pretrain", about, folder, {}, sections)


def detect_config(found: Survey, folder: Path, budget: Budget) -> str:
    """Return the config that trains a detector on what was found, from the backbone that was pretrained before."""
    objects = found.objects
    assert objects is not None
    about = (
        "Faster R-CNN with FPN (Lin et al. 2017, arXiv:1612.03144), chosen by `visionlab init` for"
        f" {budget.device}: {len(objects.boxes)} objects of {len(objects.classes)} classes in {objects.images} images."
    )
    size = rules.transform(found, budget)
    short_side = size.settings["short_side"]
    level = rules.strides(found, short_side)
    network = rules.backbone(budget)
    network = Choice(network.settings | level.settings, "; ".join(why for why in (network.why, level.why) if why))
    finest = level.settings.get("strides", [4, 8, 16, 32])
    validation = rules.validation(objects)
    data = {"root": found.root, "classes": objects.classes, **validation.settings}
    sections = {
        "data": Choice(data, validation.why),
        "transform": size,
        "backbone": network,
        "neck": Choice({"name": "fpn", "channels": 64 if budget is CPU else 256}, ""),
        "rpn": rules.rpn(found, short_side, [*finest, 2 * finest[-1]], budget),
        "head": rules.head(found, budget),
        **rules.detect_training(found, budget, short_side),
    }
    weights = {"weights": str(folder / "pretrain" / "backbone.safetensors")}
    return _config("detect", about, folder, weights, sections)


def _config(task: str, about: str, folder: Path, settings: Mapping[str, Any], sections: Mapping[str, Choice]) -> str:
    command = f"visionlab train {shlex.quote(str(folder / f'{task}.yaml'))}"
    lines = [f"# {line}" for line in textwrap.wrap(about, WIDTH - 2)]
    lines += [f"#   {command}"]
    lines += [_line("task", task), _line("out", str(folder / task)), *(_line(*item) for item in settings.items())]
    for name, choice in sections.items():
        if choice.settings:
            lines += _commented(_line(name, choice.settings), choice.why)
    return "\n".join(lines) + "\n"


def _commented(line: str, why: str) -> list[str]:
    """Return a setting with its reason behind it where there is room, else above it."""
    if not why:
        return [line]
    if len(line) + len(why) + 4 <= WIDTH and "\n" not in line:
        return [f"{line}  # {why}"]
    return [*(f"# {part}" for part in textwrap.wrap(why, WIDTH - 2)), line]


def _line(key: str, value: Any) -> str:
    """Return a setting as YAML; what is wider than a line goes on in the next."""
    if not isinstance(value, dict):
        return yaml.safe_dump({key: value}, allow_unicode=True, width=math.inf).rstrip("\n")
    wide = WIDTH - len(key) - 30  # PyYAML breaks a line only once it is too wide
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=wide)
    return f"{key}: {text}".rstrip("\n")

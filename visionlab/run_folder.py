"""What a run writes down before it starts: its config, its environment, and whether it goes on from an earlier one."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from visionlab import __version__, distributed
from visionlab.config.load import ConfigError, load, show
from visionlab.config.schema import Detect, Pretrain

# Settings that change where and how a run is done, but not what comes out: a run may be resumed with others.
UNESSENTIAL = ("out.", "device.", "loader.workers.", "checkpoints.", "log.")
STEPS = "train.steps"
RECORDED = ("timm", "albumentations", "numpy", "pillow", "pycocotools")


def open_folder(run: Pretrain | Detect, device: torch.device) -> Path:
    """Make the run folder and write down what runs, and on what."""
    folder = Path(run.out)
    changed = distributed.broadcast(_changed_settings(run, folder) if distributed.is_main() else None)
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); give the run another folder, restore "
            f"the settings, or remove {folder / 'checkpoints'} to start from step 0"
        )
    if distributed.is_main():
        make_folders(folder)
        if not _can_resume(folder):
            for measured in (folder / "eval").glob("step_*.json"):
                measured.unlink()  # of an earlier run, whose checkpoints someone removed
        write_text(folder / "config.yaml", show(run))
        write_text(folder / "environment.json", json.dumps(_environment(run, device), indent=1))
    distributed.barrier()
    return folder


def make_folders(folder: Path) -> None:
    """Make the folders that a run writes into."""
    for name in ("eval", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def fingerprint(run: Pretrain | Detect) -> str:
    """Return a text that changes with every setting that changes what a run computes in a given step."""
    settings = {key: value for key, value in _essential(run).items() if key != STEPS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _essential(run: Pretrain | Detect) -> dict[str, Any]:
    """Return the settings that change what a run computes, by ``section.key``."""
    settings = _flat(run.model_dump(mode="json"))
    return {key: value for key, value in settings.items() if not f"{key}.".startswith(UNESSENTIAL)}


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _changed_settings(run: Pretrain | Detect, folder: Path) -> list[str]:
    """Return how a run differs from the one in its folder, whose checkpoints it would go on from."""
    if not _can_resume(folder):
        return []
    try:
        earlier = load(folder / "config.yaml")
    except ConfigError:
        return []  # made by another version; the checkpoint itself knows whether it fits
    then, now = _essential(earlier), _essential(run)
    changed = {
        key: f"{key} was {then.get(key)}, is {now.get(key)}" for key in now | then if now.get(key) != then.get(key)
    }
    if list(changed) == [STEPS]:
        if _goes_on(earlier, run):
            return []
        key, file = ("weights", "backbone") if isinstance(run, Pretrain) else ("detector", "detector")
        changed[STEPS] += (
            "; a run can be given more steps where its schedule does not depend on their number: constant, multistep, "
            f"cosine with restart_every; else go on in a new folder with {key}={folder / file}.safetensors"
        )
    return list(changed.values())


def _goes_on(earlier: Pretrain | Detect, run: Pretrain | Detect) -> bool:
    """Return whether a run of more steps would have done the steps of the earlier one at the same learning rates."""
    if run.train.steps < earlier.train.steps:
        return False
    before, after = (each.schedule.build(each.train.steps) for each in (earlier, run))
    return all(before(step) == after(step) for step in range(earlier.train.steps))


def _can_resume(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step_*.pt"))


def _environment(run: Pretrain | Detect, device: torch.device) -> dict[str, Any]:
    versions = {"visionlab": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {
        "task": run.task,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "versions": versions | {name: version(name) for name in RECORDED},
    }


def _git_commit() -> str | None:
    """Return the commit of the working folder, with ``+`` after it if files differ from it."""
    try:
        describe = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

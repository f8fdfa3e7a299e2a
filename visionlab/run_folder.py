"""What a run writes down before it starts: its config, its data and its environment."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from visionlab import __version__, distributed
from visionlab.config.load import show
from visionlab.config.schema import Detect, Pretrain
from visionlab.data.identity import Identity
from visionlab.files import write_text
from visionlab.resume import DATA, can_resume, check_data, describe_data

RECORDED = ("timm", "albumentations", "numpy", "pillow", "pycocotools")


def open_folder(run: Pretrain | Detect, device: torch.device, data: Mapping[str, tuple[str, Identity]]) -> None:
    """Make the run folder and write down what runs, on which data, and where.

    Args:
        run: of any kind.
        device: where it computes.
        data: where each part of the data was read from, and what it is.

    Raises:
        ValueError: the folder holds checkpoints of a run on other data; nothing is written then.
    """
    folder = Path(run.out)
    check_data(folder, data)
    if distributed.is_main():
        make_folders(folder)
        if not can_resume(folder):
            for measured in (folder / "eval").glob("step_*.json"):
                measured.unlink()  # of an earlier run, whose checkpoints someone removed
        write_text(folder / "config.yaml", show(run))
        write_text(folder / DATA, describe_data(data))
        write_text(folder / "environment.json", json.dumps(_environment(run, device), indent=1))
    distributed.barrier()


def make_folders(folder: Path) -> None:
    """Make the folders that a run writes into."""
    for name in ("eval", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)


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

"""Whether a run may go on from the checkpoints in its folder: what has to be as it was, and what may change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionlab import distributed
from visionlab.config.load import ConfigError, load
from visionlab.config.refusals import build_on_meta
from visionlab.config.schema import Detect, Pretrain
from visionlab.config.stand_in import StandIn
from visionlab.data.identity import Identity

# Settings that change where and how a run is done, but not what comes out.
UNESSENTIAL = ("out.", "device.", "loader.workers.", "checkpoints.", "log.")
# Where the data lies does not matter to what a step computes: the data itself is compared.
FILES = ("annotations", "images", "image_sets")
PLACES = tuple(f"data.{key}." for key in ("root", "list_file", *FILES, *(f"val_{key}" for key in FILES)))
STEPS = "train.steps"
DATA = "data.json"


def essential_settings(run: Pretrain | Detect) -> dict[str, Any]:
    """Return the settings that change what a run computes, by ``section.key``."""
    settings = _flat(run.model_dump(mode="json"))
    return {key: value for key, value in settings.items() if not f"{key}.".startswith(UNESSENTIAL)}


def checkpoint_fingerprint(run: Pretrain | Detect) -> str:
    """Return a text that changes with every setting that changes what one step of a run computes."""
    return _hash({key: value for key, value in essential_settings(run).items() if key != STEPS and not _is_place(key)})


def can_resume(folder: Path) -> bool:
    """Return whether there are checkpoints in a run folder."""
    return any((folder / "checkpoints").glob("step_*.pt"))


def check_settings(run: Pretrain | Detect, folder: Path) -> None:
    """Refuse to go on from a run with other settings; a finished one may be given more steps where that is the same.

    Args:
        run: what is to run.
        folder: its folder, which may not exist.

    Raises:
        ValueError: on every process.
    """
    changed = distributed.broadcast(_changed_settings(run, folder) if distributed.is_main() else None)
    if changed:
        raise ValueError(_refusal(folder, "settings", changed))


def check_data(folder: Path, data: Mapping[str, tuple[str, Identity]]) -> None:
    """Refuse to go on from a run on other data.

    Args:
        folder: the run folder, which may not exist.
        data: where each part of the data (``train``, ``val``) was read from, and what it is.

    Raises:
        ValueError: on every process.
    """
    changed = distributed.broadcast(_changed_data(folder, data) if distributed.is_main() else None)
    if changed:
        raise ValueError(_refusal(folder, "data", changed))


def describe_data(data: Mapping[str, tuple[str, Identity]]) -> str:
    """Return the json that ``check_data`` reads at the next start."""
    return json.dumps({part: {"source": s, **identity.to_dict()} for part, (s, identity) in data.items()}, indent=1)


def _changed_settings(run: Pretrain | Detect, folder: Path) -> list[str]:
    if not can_resume(folder):
        return []
    try:
        earlier = load(folder / "config.yaml")
    except ConfigError:
        return []  # made by another version; the checkpoint itself knows whether it fits
    then, now = essential_settings(earlier), essential_settings(run)
    differing = [key for key in now | then if now.get(key) != then.get(key) and not _is_place(key)]
    changed = {key: f"{key} was {then.get(key)}, is {now.get(key)}" for key in differing}
    if differing == [STEPS]:
        if _goes_on(earlier, run):
            return []
        key, file = ("weights", "backbone") if isinstance(run, Pretrain) else ("detector", "detector")
        changed[STEPS] += (
            "; a run can be given more steps where nothing depends on their number, as in the schedules constant, "
            "multistep and cosine with restart_every; else go on in a new folder with "
            f"{key}={folder / file}.safetensors"
        )
    return list(changed.values())


def _goes_on(earlier: Pretrain | Detect, run: Pretrain | Detect) -> bool:
    """Return whether a run of more steps would have done the steps of the earlier one alike."""
    if run.train.steps < earlier.train.steps:
        return False
    if isinstance(run, Pretrain) and build_on_meta(run.pretext, StandIn(run.backbone)).depends_on_length:
        return False
    before, after = (each.schedule.build(each.train.steps) for each in (earlier, run))
    return all(before(step) == after(step) for step in range(earlier.train.steps))


def _changed_data(folder: Path, data: Mapping[str, tuple[str, Identity]]) -> list[str]:
    file = folder / DATA
    if not can_resume(folder) or not file.exists():  # earlier versions wrote none
        return []
    try:
        earlier = {
            part: Identity(found["images"], found["digest"], tuple(found["classes"]), found["boxes"])
            for part, found in json.loads(file.read_text(encoding="utf-8")).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return [f"{file}: expected what the run wrote of its data, it cannot be read"]
    changed = [f"there are no {part} images any more" for part in earlier.keys() - data.keys()]
    for part, (source, identity) in data.items():
        if part not in earlier:
            changed.append(f"{source}: there were no {part} images")
        elif difference := identity.difference(earlier[part]):
            changed.append(f"{source}: {part}: {difference}")
    return changed


def _refusal(folder: Path, what: str, changed: list[str]) -> str:
    return (
        f"{folder} holds a run with other {what} ({'; '.join(changed)}); give the run another folder, restore the "
        f"{what}, or remove {folder / 'checkpoints'} to start from step 0"
    )


def _is_place(key: str) -> bool:
    return f"{key}.".startswith(PLACES)


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

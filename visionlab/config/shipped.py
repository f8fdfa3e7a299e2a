"""The configs that come with visionlab."""

from __future__ import annotations

import shutil
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """Return where the shipped configs lie: in the package, or beside it in a checkout."""
    for place in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{PACKAGE}: expected the shipped configs in it, the installation is incomplete")


def shipped(name: str) -> Path:
    """Return the path of one shipped config, for example ``quickstart/detect.yaml``."""
    return folder() / name


def copy_configs(target: Path) -> list[Path]:
    """Copy all shipped configs into a folder and return the copies.

    Raises:
        FileExistsError: one of them is there already; nothing is copied then.
    """
    sources = sorted(folder().rglob("*.yaml"))
    copies = [target / source.relative_to(folder()) for source in sources]
    for copy in copies:
        if copy.exists():
            raise FileExistsError(f"{copy}: expected no file there, got one; name another folder")
    for source, copy in zip(sources, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return copies

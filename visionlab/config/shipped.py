"""The configs that come with visionlab."""

from __future__ import annotations

from pathlib import Path

from visionlab.files import write_bytes

_PACKAGE = Path(__file__).parent.parent
FOLDER = next((f for f in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if f.is_dir()), _PACKAGE / "configs")
"""Inside the package where it is installed, beside it in a checkout."""


def shipped(name: str) -> Path:
    """Return the path of a shipped config.

    Args:
        name: its path below ``configs/``, for example ``quickstart/detect.yaml``.

    Raises:
        ValueError: there is none of that name.
    """
    path = FOLDER / name
    if not path.is_file():
        raise ValueError(f"no shipped config {name}, expected one of {', '.join(shipped_names())}")
    return path


def shipped_names() -> list[str]:
    """Return the names of all shipped configs."""
    return sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml"))


def copy_configs(folder: str | Path) -> list[Path]:
    """Copy the shipped configs.

    Args:
        folder: where to; made if it is not there. Files that are there already are not written over.

    Returns:
        The paths of the copies.

    Raises:
        ValueError: a file of that name is there, with another content.
    """
    copies = {shipped(name): Path(folder, name) for name in shipped_names()}
    for source, target in copies.items():
        if target.exists() and target.read_bytes() != source.read_bytes():
            raise ValueError(f"{target} is there and differs from the shipped config; choose another folder")
    for source, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, source.read_bytes())
    return list(copies.values())

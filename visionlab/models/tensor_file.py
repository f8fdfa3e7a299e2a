"""Safetensors files with a description of what they hold, written all or nothing and read with clear refusals."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import visionlab

FORMAT = 1


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, kind: str, description: Mapping[str, str]) -> None:
    """Write tensors and their description in one step: a crash leaves the old file or the new one, never half of one.

    Args:
        tensors: what to store, by name.
        path: the file; its folder must exist.
        kind: what the file is, for example ``visionlab backbone``.
        description: what to keep with the tensors; ``kind``, ``format`` and ``visionlab`` (the version) are added.
    """
    own = {"kind": kind, "format": str(FORMAT), "visionlab": visionlab.__version__}
    taken = own.keys() & description.keys()
    if taken:
        raise ValueError(f"{path}: '{min(taken)}' is not free to describe the file with")
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = Path(f"{path}.{os.getpid()}.part")
    try:
        # Not by save_file, whose files their owner alone may read, whatever the umask.
        with open(temporary, "wb") as file:
            file.write(save(stored, {**own, **description}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, whoever wrote it.

    Returns:
        The tensors by name, and the description; that of a file which visionlab wrote has ``kind``.

    Raises:
        ValueError: no such file, no safetensors file, or one that a newer visionlab wrote.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = file.metadata() or {}
            if description.get("kind", "").startswith("visionlab "):
                _check_format(path, description)
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a safetensors file, it cannot be read as one ({error})") from error


def _check_format(path: str | Path, description: Mapping[str, str]) -> None:
    number = description.get("format", "")
    if not number.isdigit() or int(number) > FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT} or older, got {number or 'none'}, written by visionlab "
            f"{description.get('visionlab', '(unknown)')}; this is visionlab {visionlab.__version__}"
        )

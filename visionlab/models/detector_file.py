"""A detector in one file: weights, class names, normalization and everything that builds it."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from visionlab.models.backbone import Normalization
from visionlab.models.detector import TwoStageDetector, build_detector

KIND = "visionlab detector"
FORMAT = 1


def save_detector(detector: TwoStageDetector, path: str | Path, *, provenance: dict[str, Any] | None = None) -> None:
    """Write a detector to a safetensors file, all or nothing.

    Args:
        detector: made by ``build_detector`` or ``read_detector``.
        path: the file; its folder must exist. A file that is there is replaced in one step.
        provenance: plain JSON to keep with the weights, for example the sizes that images were resized to.

    Raises:
        ValueError: the detector was put together by hand, so nothing says how to build it again.
    """
    if not detector.settings:
        raise ValueError(f"{path}: expected a detector made by build_detector, this one has no settings to save")
    normalization = detector.backbone.normalization
    description = {
        "kind": KIND,
        "format": str(FORMAT),
        "classes": json.dumps(detector.classes),
        "normalization": json.dumps({"mean": normalization.mean, "std": normalization.std}),
        "settings": json.dumps(detector.settings),
        "provenance": json.dumps(provenance or {}),
        "visionlab": _version(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    temporary = Path(f"{path}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, description)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_detector(path: str | Path) -> TwoStageDetector:
    """Build the detector that a file holds.

    Args:
        path: what ``save_detector`` wrote.

    Returns:
        The detector, on the CPU, in evaluation mode; ``provenance`` holds what was kept with the weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no detector, a newer version wrote it, or it is damaged.
    """
    description, tensors = _read(path)
    detector = build_detector(json.loads(description["classes"]), **json.loads(description["settings"]))
    detector.backbone.normalization = Normalization(**json.loads(description["normalization"]))
    detector.provenance = json.loads(description["provenance"])
    expected = {name: tensor.shape for name, tensor in detector.state_dict().items()}
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors or expected.get(name) != tensors[name].shape
    )
    if wrong:
        raise ValueError(f"{path}: {len(wrong)} weights do not fit the file's own settings, the first is '{wrong[0]}'")
    detector.load_state_dict(tensors)
    return detector.eval()


def _version() -> str:
    try:
        return metadata.version("visionlab")
    except metadata.PackageNotFoundError:
        return "not installed"


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a detector file's description and weights."""
    try:
        with safe_open(path, framework="pt") as file:
            description = file.metadata() or {}
            if description.get("kind") != KIND:
                raise ValueError(f"{path}: expected a file written by save_detector, it does not say it is a detector")
            if int(description["format"]) > FORMAT:
                raise ValueError(
                    f"{path}: expected format {FORMAT} or older, got {description['format']},"
                    f" written by visionlab {description['visionlab']}; install that version or a newer one"
                )
            return description, {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, it cannot be read as one ({error})") from error

"""The compiled operators: loads csrc's two libraries once and keeps the reason where one is not there."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    """One of the two libraries.

    Args:
        path: where it lies, or would lie.
        built: whether the file is there.
        loaded: whether its operators are registered with torch.
        reason: why it is not loaded; empty when it is.
        wanted: whether this install and this environment ask for it, so that its absence is an error.
    """

    path: Path
    built: bool
    loaded: bool
    reason: str
    wanted: bool


def _load(path: Path, refusal: str, missing: str) -> Library:
    built = path.exists()
    if refusal or not built:
        return Library(path, built, False, refusal or missing, not refusal)
    try:
        torch.ops.load_library(path)
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        return Library(path, True, False, reason, True)
    return Library(path, True, True, "", True)


@cache
def cpu_library() -> Library:
    """Load ``_C.so``: the table of operators and their CPU kernels."""
    refusal = ""
    if os.environ.get("VISIONLAB_NATIVE") == "0":
        refusal = "VISIONLAB_NATIVE=0 is set"
    elif (_FOLDER / "_C.disabled").exists():
        refusal = "it was installed with VISIONLAB_NATIVE=0"
    return _load(_FOLDER / "_C.so", refusal, "the file is missing; build it with `pip install -e .`")


@cache
def cuda_library() -> Library:
    """Load ``_C_cuda.so``, where this torch has CUDA and the library was built."""
    refusal = ""
    path = _FOLDER / "_C_cuda.so"
    if not cpu_library().loaded:
        refusal = "the CPU library, which it extends, is not loaded"
    elif torch.version.cuda is None:
        refusal = "this torch was built without CUDA"
    elif os.environ.get("VISIONLAB_CUDA") == "0":
        refusal = "VISIONLAB_CUDA=0 is set"
    elif not path.exists():
        refusal = "it was not built: no nvcc was found, or VISIONLAB_CUDA=0 was set"
    return _load(path, refusal, "")


def load() -> bool:
    """Load both libraries and return whether the operators have compiled kernels.

    Returns:
        False for an install or an environment with ``VISIONLAB_NATIVE=0``, after a warning.

    Raises:
        ImportError: if a library that should be there is missing or does not load.
    """
    for library in (cpu_library(), cuda_library()):
        if library.wanted and not library.loaded:
            raise ImportError(
                f"visionlab's operators did not load from {library.path}: {library.reason} "
                "(VISIONLAB_NATIVE=0 runs them in plain PyTorch, slowly)"
            )
    if not cpu_library().loaded:
        warnings.warn(
            f"visionlab's operators run in plain PyTorch, slowly: {cpu_library().reason}", RuntimeWarning, stacklevel=3
        )
    return cpu_library().loaded

"""What is installed, built and loaded, and why not: the text of ``visionlab doctor``."""

from __future__ import annotations

import importlib
import platform
import sys
from importlib import metadata

import torch

from visionlab import __version__, _native

PACKAGES = {  # distribution: what it is for
    "torchvision": "a peer to compare with",
    "timm": "backbones",
    "albumentations": "augmentation",
    "pycocotools": "COCO metrics",
    "faster-coco-eval": "COCO metrics, faster",
    "tensorboard": "event files",
    "onnxruntime": "running exported models",
}


def examine() -> tuple[str, bool]:
    """Describe this install.

    Returns:
        The text, and whether all that should work does.
    """
    problems = _problems()
    lines = [*_versions(), *_libraries(), *_devices(), *_packages()]
    lines += [_line("problem", problem) for problem in problems] or [_line("problems", "none")]
    return "\n".join(lines), not problems


def _line(name: str, value: object) -> str:
    return f"{name:17} {value}"


def _versions() -> list[str]:
    cuda = f"built with CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return [
        _line("visionlab", f"{__version__} from {_native.cpu_library().path.parent}"),
        _line("python", f"{platform.python_version()} at {sys.executable}"),
        _line("torch", f"{torch.__version__}, {cuda}"),
    ]


def _libraries() -> list[str]:
    cpu, cuda = _native.cpu_library(), _native.cuda_library()
    lines = [_line("CPU library", _describe(cpu)), _line("CUDA library", _describe(cuda))]
    if cpu.loaded:
        lines.append(_line("SIMD level", torch.ops.visionlab.simd_level()))
    if cuda.loaded:
        lines.append(_line("CUDA build", torch.ops.visionlab.cuda_build()))
    lines.append(_line("operators on CPU", "compiled kernels" if cpu.loaded else "plain PyTorch, slow"))
    lines.append(_line("operators on CUDA", "plain PyTorch: there are no CUDA kernels yet"))
    return lines


def _describe(library: _native.Library) -> str:
    if library.loaded:
        return f"loaded from {library.path}"
    return f"{'built' if library.built else 'not there'}, not loaded: {library.reason}"


def _devices() -> list[str]:
    lines = [_line("threads", torch.get_num_threads())]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        lines.append(
            _line(f"GPU {index}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB")
        )
    return lines if len(lines) > 1 else [*lines, _line("GPU", "none")]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> list[str]:
    return [_line(name, _version(name) or f"not installed ({purpose})") for name, purpose in PACKAGES.items()]


def _problems() -> list[str]:
    problems = [
        f"{library.path.name} should be loaded and is not: {library.reason}"
        for library in (_native.cpu_library(), _native.cuda_library())
        if library.wanted and not library.loaded
    ]
    pair = _torchvision_problem()
    return [*problems, pair] if pair else problems


def _torchvision_problem() -> str | None:
    """Say why an installed torchvision does not import: its operators need the torch they were built for."""
    version = _version("torchvision")
    if version is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        pair = f"torchvision {version} does not work with torch {torch.__version__} ({' '.join(str(error).split())})"
        if torch.version.cuda is None and "+cpu" not in version:
            return (
                f"{pair}: this torch is for the CPU alone, PyPI's torchvision is built for CUDA; install both from one "
                "place, for example `pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu`. "
                "visionlab.ops works without torchvision, timm's models do not"
            )
        return f"{pair}: install the two that were released together"
    return None

"""What is installed, built, loaded and right, and why not: the text of ``visionlab doctor``."""

from __future__ import annotations

import importlib
import platform
import re
import sys
import warnings
from importlib import metadata
from types import ModuleType

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
    """Describe this install, and try some operators on every device.

    Returns:
        The text, and whether all that should work does.
    """
    problems: list[str] = []
    lines = [*_versions(), *_libraries(problems), *_devices(problems), *_packages(problems)]
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
        _line("threads", torch.get_num_threads()),
    ]


# ---- the libraries ---------------------------------------------------------------------------------------------------


def _libraries(problems: list[str]) -> list[str]:
    cpu, cuda = _native.cpu_library(), _native.cuda_library()
    problems += [
        f"{library.path.name} should be loaded and is not: {library.reason}"
        for library in (cpu, cuda)
        if library.wanted and not library.loaded
    ]
    lines = [_line("CPU library", _describe(cpu)), _line("CUDA library", _describe(cuda))]
    if cpu.loaded:
        try:
            lines.append(_line("SIMD level", torch.ops.visionlab.simd_level()))
        except RuntimeError as error:  # VISIONLAB_SIMD asks for what is not there
            problems.append(str(error))
    if cuda.loaded:
        lines.append(_line("CUDA build", torch.ops.visionlab.cuda_build()))
    return [*lines, _operators("CPU", cpu, problems), _operators("CUDA", cuda, problems)]


def _describe(library: _native.Library) -> str:
    if library.loaded:
        return f"loaded from {library.path}"
    return f"{'built' if library.built else 'not there'}, not loaded: {library.reason}"


def _operators(key: str, library: _native.Library, problems: list[str]) -> str:
    """Say what runs operators on the CPU or on CUDA: looked up in torch's own table of kernels."""
    name = f"operators on {key}"
    if not library.loaded:
        return _line(name, f"plain PyTorch, slow: {library.reason}")
    found, known = _agreement().operators_with_kernels(key), set(_agreement().REFERENCES)
    if missing := sorted(known - found):
        problems.append(f"{library.path.name} has no {key} kernels of {', '.join(missing)}: build it again")
    return _line(name, f"compiled kernels of {len(found)} operators out of {len(known)}")


def _agreement() -> ModuleType:
    """Import the operators, which cannot be where a library that is wanted does not load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that they are slow is in the text
        from visionlab.ops import agreement
    return agreement


# ---- the devices -----------------------------------------------------------------------------------------------------


def _devices(problems: list[str]) -> list[str]:
    usable = not problems
    lines = [_line("CPU", _try_operators("CPU", torch.device("cpu"), usable, problems))]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return [*lines, _line("GPU", f"none: {_why_no_gpu()}")]
    for index in range(torch.accelerator.device_count()):
        name, device = f"GPU {index}", torch.device(accelerator.type, index)
        said = [accelerator.type]
        if accelerator.type == "cuda":
            gpu = torch.cuda.get_device_properties(index)
            said = [gpu.name, f"sm_{gpu.major}{gpu.minor}", f"{gpu.total_memory / 2**30:.0f} GiB"]
            problems += [f"{name}: {fault}" for fault in _no_code_for(gpu.major, gpu.minor)]
        lines.append(_line(name, f"{', '.join(said)}; {_try_operators(name, device, usable, problems)}"))
    return lines


def _try_operators(name: str, device: torch.device, usable: bool, problems: list[str]) -> str:
    """Run some operators on a device and compare with what is known to be right."""
    if not usable:
        return "operators not tried: see to the problem first"
    agreement = _agreement()
    if device.type == "cpu" and not _native.cpu_library().loaded:
        return "runs operators in plain PyTorch"
    found = [agreement.disagreement(operator, device) for operator in agreement.OPERATORS]
    faults = [fault for fault in found if fault]
    problems += [f"{name}: {fault}" for fault in faults]
    if faults:
        return f"{len(faults)} of {len(found)} operators tried are wrong"
    return f"{', '.join(agreement.OPERATORS)} agree with {'plain PyTorch' if device.type == 'cpu' else 'the CPU'}"


def _no_code_for(major: int, minor: int) -> list[str]:
    """Say where the CUDA library runs on no GPU of this kind: it runs on its own kinds, later ones of the same major
    number, and, compiled by the driver, on all that come after the last.
    """
    if not _native.cuda_library().loaded:
        return []
    compiled = [int(arch) // 10 for arch in re.findall(r"\d+", torch.ops.visionlab.cuda_build().partition("tures")[2])]
    this = 10 * major + minor
    if not compiled or max(compiled) <= this or any(arch // 10 == major and arch <= this for arch in compiled):
        return []
    listed = ", ".join(f"sm_{arch}" for arch in compiled)
    return [
        f"the CUDA library was compiled for {listed}, not for sm_{this}: build it again with "
        f"VISIONLAB_CUDA_ARCHS={this}, or set VISIONLAB_CUDA=0"
    ]


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        return " ".join(str(error).split("\n")[0].split())
    return "torch sees none"


# ---- the packages ----------------------------------------------------------------------------------------------------


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _packages(problems: list[str]) -> list[str]:
    if pair := _torchvision_problem():
        problems.append(pair)
    return [_line(name, _version(name) or f"not installed ({purpose})") for name, purpose in PACKAGES.items()]


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

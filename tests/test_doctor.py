"""The doctor: what it says of this install, and of installs that are broken in a known way."""

import importlib
import types
from pathlib import Path

import pytest
import torch

from visionlab import _native, doctor
from visionlab.ops import agreement, register


def broken_torchvision(monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None) -> None:
    def import_module(name: str):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "torchvision" else None)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def test_names_versions_libraries_and_packages():
    text, healthy = doctor.examine()
    for word in (
        "visionlab",
        "python",
        "torch",
        "CPU library",
        "CUDA library",
        "threads",
        "CPU ",
        "GPU",
        *doctor.PACKAGES,
    ):
        assert any(line.startswith(word) for line in text.splitlines()), word
    assert torch.__version__ in text
    assert str(_native.cpu_library().path) in text or "VISIONLAB_NATIVE=0" in text
    assert healthy == ("problems          none" in text)


def test_names_torch_for_cpu_with_torchvision_of_pypi(monkeypatch: pytest.MonkeyPatch):
    broken_torchvision(monkeypatch, "0.29.2", cuda=None)
    text, healthy = doctor.examine()
    assert not healthy
    (problem,) = [line for line in text.splitlines() if line.startswith("problem ")]
    assert f"torchvision 0.29.2 does not work with torch {torch.__version__}" in problem
    assert "operator torchvision::nms does not exist" in problem
    assert "this torch is for the CPU alone" in problem
    assert "download.pytorch.org/whl/cpu" in problem


def test_names_any_other_pair_that_does_not_import(monkeypatch: pytest.MonkeyPatch):
    broken_torchvision(monkeypatch, "0.20.0", cuda="13.2")
    assert "install the two that were released together" in doctor.examine()[0]


def test_missing_packages_are_no_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert "tensorboard       not installed (event files)" in doctor.examine()[0]


def test_says_why_a_library_did_not_load(monkeypatch: pytest.MonkeyPatch):
    library = _native.Library(Path("/there/_C.so"), built=True, loaded=False, reason="undefined symbol: x", wanted=True)
    monkeypatch.setattr(_native, "cpu_library", lambda: library)
    text, healthy = doctor.examine()
    assert not healthy
    assert "CPU library       built, not loaded: undefined symbol: x" in text
    assert "_C.so should be loaded and is not: undefined symbol: x" in text
    assert "operators on CPU  plain PyTorch, slow: undefined symbol: x" in text
    assert "CPU               operators not tried: see to the problem first" in text


def test_an_install_without_the_library_on_purpose_is_healthy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISIONLAB_NATIVE", "0")
    library = _native.cpu_library.__wrapped__()
    assert (library.loaded, library.wanted, library.reason) == (False, False, "VISIONLAB_NATIVE=0 is set")
    monkeypatch.setattr(_native, "cpu_library", lambda: library)
    assert "not loaded: VISIONLAB_NATIVE=0 is set" in doctor.examine()[0]


# ---- operators and devices -------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(not _native.cpu_library().loaded, reason="installed without the compiled operators")


def problems_of(text: str) -> list[str]:
    return [line.removeprefix("problem").strip() for line in text.splitlines() if line.startswith("problem ")]


@compiled
def test_looks_for_kernels_and_tries_operators():
    text, _ = doctor.examine()
    count = len(register.REFERENCES)
    assert f"operators on CPU  compiled kernels of {count} operators out of {count}" in text
    assert "CPU               roi_align, roi_align_backward, nms, deform_conv2d agree with plain PyTorch" in text
    assert "there are no CUDA kernels yet" not in text
    if _native.cuda_library().loaded:
        assert f"operators on CUDA compiled kernels of {count} operators out of {count}" in text
    else:
        assert f"operators on CUDA plain PyTorch, slow: {_native.cuda_library().reason}" in text


@compiled
def test_names_operators_without_a_kernel(monkeypatch: pytest.MonkeyPatch):
    without = agreement.operators_with_kernels("CPU") - {"nms", "roi_pool"}
    monkeypatch.setattr(
        agreement, "operators_with_kernels", lambda key: without if key == "CPU" else set(register.REFERENCES)
    )
    text, healthy = doctor.examine()
    assert not healthy
    assert "_C.so has no CPU kernels of nms, roi_pool: build it again" in problems_of(text)


@compiled
@pytest.mark.parametrize("name", agreement.OPERATORS)
def test_a_wrong_kernel_is_a_problem(name: str, monkeypatch: pytest.MonkeyPatch):
    right = register.REFERENCES[name]
    monkeypatch.setitem(register.REFERENCES, name, lambda *args: right(*args).flip(0))
    text, healthy = doctor.examine()
    assert not healthy
    (problem,) = problems_of(text)
    assert problem.startswith(f"CPU: {name} differs from plain PyTorch by ")
    assert "1 of 4 operators tried are wrong" in text


@compiled
def test_an_operator_that_gives_nan_or_another_shape_disagrees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(register.REFERENCES, "nms", lambda *args: torch.tensor([1]))
    assert "nms gives shape" in agreement.disagreement("nms", torch.device("cpu"))
    right = register.REFERENCES["deform_conv2d"]
    monkeypatch.setitem(register.REFERENCES, "deform_conv2d", lambda *args: right(*args) * torch.nan)
    assert "deform_conv2d differs from plain PyTorch by nan" in agreement.disagreement(
        "deform_conv2d", torch.device("cpu")
    )


def fake_gpus(monkeypatch: pytest.MonkeyPatch, major: int, minor: int, faults: dict[str, str]) -> None:
    """Two GPUs that this machine does not have; the second one has faults, by operator."""
    gpu = types.SimpleNamespace(name="NVIDIA H200", major=major, minor=minor, total_memory=139 * 2**30)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(agreement, "disagreement", lambda name, device: faults.get(name) if device.index == 1 else None)


@compiled
def test_every_gpu_is_tried(monkeypatch: pytest.MonkeyPatch):
    fake_gpus(monkeypatch, 9, 0, {"nms": "nms fails: CUDA error: an illegal memory access was encountered"})
    text, healthy = doctor.examine()
    assert not healthy
    assert (
        "GPU 0             NVIDIA H200, sm_90, 139 GiB; roi_align, roi_align_backward, nms, deform_conv2d agree" in text
    )
    assert "GPU 1             NVIDIA H200, sm_90, 139 GiB; 1 of 4 operators tried are wrong" in text
    assert problems_of(text) == ["GPU 1: nms fails: CUDA error: an illegal memory access was encountered"]


@pytest.mark.parametrize(
    ("architectures", "gpu", "runs"),
    [
        ("800,900,1200", (9, 0), True),
        ("800,900,1200", (8, 9), True),
        ("800,1200", (9, 0), False),  # sm_80 is for its own major number, PTX of sm_120 for what comes after
        ("800,900", (12, 0), True),
        ("800,900", (7, 5), False),
    ],
)
def test_a_gpu_that_the_library_was_not_compiled_for(
    architectures: str, gpu: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
):
    library = _native.Library(Path("/there/_C_cuda.so"), built=True, loaded=True, reason="", wanted=True)
    monkeypatch.setattr(_native, "cuda_library", lambda: library)
    monkeypatch.setattr(
        torch.ops.visionlab, "cuda_build", lambda: f"CUDA 13.0, architectures {architectures}", raising=False
    )
    faults = doctor._no_code_for(*gpu)
    assert not faults if runs else f"not for sm_{gpu[0]}{gpu[1]}: build it again" in faults[0]


@compiled
def test_a_level_of_vectors_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def simd_level() -> str:
        raise RuntimeError("VISIONLAB_SIMD: expected at most avx2, which this CPU has, got avx512")

    monkeypatch.setattr(torch.ops.visionlab, "simd_level", simd_level)
    text, healthy = doctor.examine()
    assert not healthy
    assert problems_of(text) == ["VISIONLAB_SIMD: expected at most avx2, which this CPU has, got avx512"]

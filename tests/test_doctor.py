"""The doctor: what it says of this install, and of installs that are broken in a known way."""

import importlib
from pathlib import Path

import pytest
import torch

from visionlab import _native, doctor


def broken_torchvision(monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None) -> None:
    def import_module(name: str):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "torchvision" else None)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def test_names_versions_libraries_and_packages():
    text, healthy = doctor.examine()
    for word in ("visionlab", "python", "torch", "CPU library", "CUDA library", "threads", "GPU", *doctor.PACKAGES):
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
    assert "operators on CPU  plain PyTorch, slow" in text


def test_an_install_without_the_library_on_purpose_is_healthy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISIONLAB_NATIVE", "0")
    library = _native.cpu_library.__wrapped__()
    assert (library.loaded, library.wanted, library.reason) == (False, False, "VISIONLAB_NATIVE=0 is set")
    monkeypatch.setattr(_native, "cpu_library", lambda: library)
    assert "not loaded: VISIONLAB_NATIVE=0 is set" in doctor.examine()[0]

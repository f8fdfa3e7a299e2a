"""visionlab.ops on its own: without torchvision and timm, without the library, and with one that does not load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visionlab import _native
from visionlab.ops import register

ROOT = Path(__file__).parent.parent.parent
OPERATORS = sorted(register.REFERENCES)
POOL = """
import torch
from visionlab import ops
input = torch.arange(50.0).reshape(1, 2, 5, 5).requires_grad_()
pooled = ops.roi_align(input, torch.tensor([[0.0, 1, 1, 4, 4]]), 2, sampling_ratio=2, aligned=True)
pooled.sum().backward()
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9]])
print(pooled.flatten().tolist(), input.grad.sum().item(), ops.nms(boxes, torch.tensor([0.1, 0.9, 0.5]), 0.5).tolist())
"""
EXPECTED = "[7.5, 9.0, 15.0, 16.5, 32.5, 34.0, 40.0, 41.5] 8.0 [1, 2]"


def run(code: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=settings, capture_output=True, text=True)


def copy_of_ops(folder: Path) -> Path:
    """A visionlab of nothing but the operators, to break."""
    for name in ("__init__.py", "_native.py", "ops/**/*.py"):
        for path in (ROOT / "visionlab").glob(name):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


@pytest.mark.skipif(not _native.cpu_library().loaded, reason="installed without the compiled operators")
def test_needs_only_torch():
    absent = ("torchvision", "timm", "albumentations", "cv2", "pydantic")
    block = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    result = run(block + POOL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == EXPECTED
    assert "RuntimeWarning" not in result.stderr


def test_without_the_library_by_environment():
    result = run(POOL + "import visionlab.ops", VISIONLAB_NATIVE="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == EXPECTED
    assert result.stderr.count("operators run in plain PyTorch, slowly: VISIONLAB_NATIVE=0 is set") == 1


def test_without_the_library_by_install(tmp_path: Path):
    folder = copy_of_ops(tmp_path)
    (folder / "visionlab" / "_C.disabled").touch()
    result = run(POOL, folder)
    assert result.returncode == 0, result.stderr
    assert "slowly: it was installed with VISIONLAB_NATIVE=0" in result.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [pytest.param(None, "the file is missing", marks=pytest.mark.slow), (b"not a library", "file too short")],
)
def test_a_library_that_does_not_load_is_an_error(tmp_path: Path, content: bytes | None, reason: str):
    folder = copy_of_ops(tmp_path)
    library = folder / "visionlab" / "_C.so"
    if content is not None:
        library.write_bytes(content)
    result = run("import visionlab.ops", folder)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: visionlab's operators did not load from {library}: ")
    assert reason in last


@pytest.mark.skipif(not _native.cpu_library().loaded, reason="installed without the compiled operators")
def test_schemas_are_those_of_the_library():
    code = f"""
import torch, visionlab.ops
for name in {OPERATORS}: print(getattr(torch.ops.visionlab, name).default._schema)
"""
    result = run(code, VISIONLAB_NATIVE="0")
    assert result.returncode == 0, result.stderr
    schemas = [str(getattr(torch.ops.visionlab, name).default._schema) for name in OPERATORS]
    assert result.stdout.splitlines() == schemas


@pytest.mark.skipif(not _native.cpu_library().loaded, reason="installed without the compiled operators")
def test_a_level_that_does_not_exist_is_refused():
    code = "import torch, visionlab.ops; torch.ops.visionlab.simd_level()"
    assert (
        "VISIONLAB_SIMD: expected scalar, baseline, avx2 or avx512, got mmx" in run(code, VISIONLAB_SIMD="mmx").stderr
    )

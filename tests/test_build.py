"""The build: what setup.py writes and refuses, and (slow) what it installs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import visionlab
from visionlab import _native

ROOT = Path(__file__).parent.parent


def setup(*command: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "setup.py", *command], cwd=folder, env=settings, capture_output=True, text=True
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what setup.py reads, so that a test does not touch the build of this checkout."""
    for pattern in (
        "setup.py",
        "setup.cfg",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "csrc",
        "configs",
        "visionlab",
    ):
        if (ROOT / pattern).exists():
            subprocess.run(["cp", "-r", str(ROOT / pattern), str(tmp_path)], check=True)
    for library in (tmp_path / "visionlab").glob("_C*"):
        library.unlink()
    return tmp_path


def test_version_comes_from_one_place():
    assert setup("--version").stdout.strip().splitlines()[-1] == visionlab.__version__


def test_no_compiler_is_an_error_that_says_what_to_do(checkout: Path):
    result = setup("build_ext", "--inplace", folder=checkout, PATH="")
    assert result.returncode != 0
    assert "a C++17 compiler was not found (looked for c++, g++, clang++)" in result.stderr
    assert "VISIONLAB_NATIVE=0" in result.stderr
    assert not (checkout / "visionlab" / "_C.so").exists()


def test_no_torch_is_an_error(checkout: Path):
    code = "import setup_without_torch"
    (checkout / "setup_without_torch.py").write_text(
        "import sys, sysconfig, importlib.util\n"
        "importlib.util.find_spec = lambda name: None\n"
        "sysconfig.get_path = lambda name: '/nowhere'\n"
        "sys.argv = ['setup.py', 'build_ext', '--inplace']\n"
        "import setuptools\n"
        "real = setuptools.setup\n"
        "def setup(**arguments):\n"
        "    print('ASKS FOR', arguments.pop('setup_requires'))\n"
        "    real(**arguments)\n"
        "setuptools.setup = setup\n"
        "exec(open('setup.py').read())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert result.returncode != 0
    assert "ASKS FOR ['torch>=2.10']" in result.stdout
    assert "no torch >= 2.10 to build with" in result.stderr


def test_a_failing_compiler_is_an_error(checkout: Path):
    result = setup("build_ext", "--inplace", folder=checkout, CXX="false", VISIONLAB_CUDA="0")
    assert result.returncode != 0
    assert "the operators did not compile" in result.stderr


def test_only_native_0_installs_without_the_library(checkout: Path):
    result = setup("bdist_wheel", folder=checkout, VISIONLAB_NATIVE="0", PATH="")
    assert result.returncode == 0, result.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name == f"visionlab-{visionlab.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "visionlab/_C.disabled" in names
    assert not any(name.endswith(".so") for name in names)
    assert any(name.startswith("visionlab/configs/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("visionlab/eval/templates/") for name in names)
    assert "visionlab/ops/nms.py" in names
    assert not any(name.startswith(("tests/", "tools/", "benchmarks/")) for name in names)


@pytest.mark.skipif(not _native.cpu_library().loaded, reason="installed without the compiled operators")
def test_library_needs_torch_cpu_alone():
    tags = subprocess.run(["readelf", "-d", _native.cpu_library().path], capture_output=True, text=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in tags.splitlines() if "NEEDED" in line]
    assert "libtorch_cpu.so" in needed
    assert not {"libtorch.so", "libc10.so", "libtorch_python.so", "libtorch_cuda.so", "libgomp.so.1"} & set(needed)
    assert "RUNPATH" not in tags
    symbols = subprocess.run(["nm", "-D", _native.cpu_library().path], capture_output=True, text=True).stdout
    assert not any(symbol.split()[-1].startswith("Py") for symbol in symbols.splitlines())


@pytest.mark.slow
def test_wheel_with_the_library_serves_every_python(checkout: Path, tmp_path: Path):
    result = setup("bdist_wheel", folder=checkout, VISIONLAB_CUDA="0")
    assert result.returncode == 0, result.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name.startswith(f"visionlab-{visionlab.__version__}-py3-none-linux_")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "from visionlab import _native, ops; print(_native.cpu_library().loaded, _native.cuda_library().reason)"
    settings = {**os.environ, "PYTHONPATH": str(installed)}
    answer = subprocess.run([sys.executable, "-c", code], cwd=installed, env=settings, capture_output=True, text=True)
    why = "this torch was built without CUDA" if torch.version.cuda is None else "it was not built"
    assert answer.stdout.startswith(f"True {why}"), answer.stderr

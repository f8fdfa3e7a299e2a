"""Builds csrc/ into visionlab/_C.so (and _C_cuda.so where nvcc is found); everything else is said in setup.cfg.

The environment may say VISIONLAB_NATIVE=0 (install without the library), VISIONLAB_CUDA=0 (without its CUDA part),
VISIONLAB_CUDA_ARCHS="80 90", VISIONLAB_TORCH_DIR (the torch package whose headers to use), VISIONLAB_SANITIZE
("address,undefined") and CXX. `setup.py build --build-base FOLDER` keeps such a build apart from the usual one.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NATIVE = os.environ.get("VISIONLAB_NATIVE") != "0"
CXX_FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wno-psabi"
)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"  # loads in torch 2.10 and every later one
CUDA_ARCHS = "80 86 89 90 100 120"


def find_torch() -> Path | None:
    """The torch package whose headers to build with; in an isolated build also that of the environment behind it."""
    spec = importlib.util.find_spec("torch")
    folders = [os.environ.get("VISIONLAB_TORCH_DIR"), spec and spec.submodule_search_locations[0]]
    folders.append(os.path.join(sysconfig.get_path("purelib"), "torch"))
    found = [Path(f) for f in folders if f and Path(f, "include/torch/csrc/stable/ops.h").exists()]
    return found[0] if found else None


def find_tool(names: list[str], purpose: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise SystemExit(
        f"error: {purpose} was not found (looked for {', '.join(names)}). Install it, or set VISIONLAB_NATIVE=0 to "
        "install without the compiled operators, which then run in plain PyTorch, slowly."
    )


def cuda_flags(nvcc: str) -> str:
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    archs = os.environ.get("VISIONLAB_CUDA_ARCHS", "").split()
    archs = archs or [arch for arch in CUDA_ARCHS.split() if f"sm_{arch}" in listed.split()]
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    return f"-std=c++17 -O3 --threads 2 -Xcompiler -fPIC,-fvisibility=hidden {' '.join(codes)}"


def ninja_rules(torch: Path) -> str:
    """The build of both libraries. Linking needs only the names of torch's libraries: empty ones stand in for them."""
    cxx = find_tool([os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"], "a C++17 compiler")
    nvcc = shutil.which("nvcc") if os.environ.get("VISIONLAB_CUDA") != "0" else None
    sanitize = os.environ.get("VISIONLAB_SANITIZE")
    checks = f" -fsanitize={sanitize} -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1" if sanitize else ""
    launcher = f"{shutil.which('ccache')} " if shutil.which("ccache") else ""
    rules = f"""
cxx = {cxx}
rule cxx
  command = {launcher}$cxx {CXX_FLAGS}{checks} {STABLE_ABI} -isystem {torch / "include"} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule stub
  command = $cxx -shared -x c++ /dev/null -Wl,-soname,$soname -o $out
rule link
  command = $cxx -shared{checks} $in -Wl,--no-as-needed -L. -ltorch_cpu -Wl,--as-needed -o $out
build libtorch_cpu.so: stub
  soname = libtorch_cpu.so
build libtorch_cuda.so: stub
  soname = libtorch_cuda.so
"""
    if nvcc:
        rules += f"""
rule cuda
  command = {nvcc} {cuda_flags(nvcc)} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link_cuda
  command = {nvcc} -shared -cudart static $in -Xlinker --no-as-needed -L. -ltorch_cpu -ltorch_cuda -o $out
"""
    objects: dict[str, list[str]] = {"_C.so": [], "_C_cuda.so": []}
    for source in sorted([*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu")]):
        library = "_C_cuda.so" if "cuda" in source.relative_to(ROOT).parts else "_C.so"
        if library == "_C.so" or nvcc:
            name = re.sub(r"\W", "_", str(source.relative_to(ROOT))) + ".o"
            rules += f"build {name}: {'cuda' if source.suffix == '.cu' else 'cxx'} {source}\n"
            objects[library].append(name)
    rules += f"build _C.so: link {' '.join(objects['_C.so'])} | libtorch_cpu.so\n"
    if nvcc:
        rules += f"build _C_cuda.so: link_cuda {' '.join(objects['_C_cuda.so'])} | libtorch_cpu.so libtorch_cuda.so\n"
    return rules


class BuildNative(build_ext):
    def target(self) -> Path:
        return ROOT / "visionlab" if self.inplace or self.editable_mode else Path(self.build_lib, "visionlab")

    def folder(self) -> Path:
        """Where the object files stay, so that the next build compiles only what changed."""
        return Path(ROOT, self.get_finalized_command("build").build_base, "native")

    def run(self):
        target = self.target()
        target.mkdir(parents=True, exist_ok=True)
        for name in ("_C.so", "_C_cuda.so", "_C.disabled"):
            (target / name).unlink(missing_ok=True)
        if not NATIVE:
            (target / "_C.disabled").write_text("Installed with VISIONLAB_NATIVE=0.\n")
            return
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                "error: no torch >= 2.10 to build with: install torch, or name its folder in VISIONLAB_TORCH_DIR"
            )
        folder = self.folder()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_rules(torch))
        ninja = find_tool(["ninja", "ninja-build"], "ninja")
        if subprocess.run([ninja, "-C", str(folder)]).returncode:
            raise SystemExit(
                "error: the operators did not compile, see above; VISIONLAB_NATIVE=0 installs without them"
            )
        for library in self.built():
            shutil.copy2(folder / library, target / library)

    def built(self) -> list[str]:
        rules = (self.folder() / "build.ninja").read_text()
        return [name for name in ("_C.so", "_C_cuda.so") if f"build {name}:" in rules]

    def get_outputs(self):
        return [str(self.target() / name) for name in (self.built() if NATIVE else ["_C.disabled"])]

    def get_output_mapping(self):
        return {}


class BuildPython(build_py):
    """Ships the top-level configs/ as visionlab/configs; in a checkout the top-level folder itself is found."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "visionlab", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target)


class AnyPython(bdist_wheel):
    """The library is built on torch's stable ABI and uses nothing of Python, so one wheel serves every version."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2] if NATIVE else "any"


setup(
    ext_modules=[Extension("visionlab._C", sources=[])],
    setup_requires=["torch>=2.10"] if NATIVE and find_torch() is None else [],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython, "bdist_wheel": AnyPython},
)

"""The CUDA library is complete: every architecture, a kernel for every operator. No GPU is needed."""

import os
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from visionlab import _native, ops

ROOT = Path(__file__).parent.parent.parent
ARCHITECTURES = {80, 86, 89, 90, 100, 120}
PTX, ELF = 1, 2
MAGIC = struct.pack("<I", 0xBA55ED50)

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc"),
    pytest.mark.skipif(os.environ.get("VISIONLAB_CUDA") == "0", reason="VISIONLAB_CUDA=0 is set"),
    pytest.mark.skipif("VISIONLAB_CUDA_ARCHS" in os.environ, reason="VISIONLAB_CUDA_ARCHS asks for less"),
    pytest.mark.skipif(not _native.cpu_library().loaded, reason="installed without the compiled operators"),
]


@pytest.fixture(scope="module")
def library() -> Path:
    path = _native.cuda_library().path
    assert path.exists(), f"nvcc is here, but {path} was not built"
    return path


def device_code(library: Path, folder: Path) -> Counter[tuple[int, int]]:
    """Count the pieces of device code by (PTX or ELF, architecture), read from the fat binaries' own headers."""
    section = folder / "fatbin"
    subprocess.run(["objcopy", "-O", "binary", "--only-section=.nv_fatbin", library, section], check=True)
    data, found, begin = section.read_bytes(), Counter(), 0
    while (begin := data.find(MAGIC, begin)) >= 0:
        header, size = struct.unpack_from("<HQ", data, begin + 6)
        begin += header
        end = begin + size
        while begin < end:
            kind, _, entry, payload = struct.unpack_from("<HHIQ", data, begin)
            found[kind, struct.unpack_from("<I", data, begin + 28)[0]] += 1
            begin += entry + payload
    return found


def test_every_source_is_compiled_for_every_architecture(library: Path, tmp_path: Path):
    sources = len(list(ROOT.glob("csrc/**/*.cu")))
    code = device_code(library, tmp_path)
    for architecture in ARCHITECTURES:
        assert code[ELF, architecture] == sources, f"sm_{architecture}: {code[ELF, architecture]} of {sources} sources"
    assert code[PTX, max(ARCHITECTURES)] == sources, "PTX for later GPUs is missing"


def test_every_operator_has_a_cuda_kernel(library: Path):
    if torch.version.cuda is None:
        pytest.skip("this torch was built without CUDA: the library is compiled, and cannot be loaded")
    assert _native.cuda_library().loaded, _native.cuda_library().reason
    assert ops.nms is not None
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("visionlab::")]
    on_cpu = {name for name in names if has(name, "CPU")}
    assert {"visionlab::nms", "visionlab::roi_align", "visionlab::roi_align_backward"} <= on_cpu
    assert not sorted(name for name in on_cpu if not has(name, "CUDA"))


def test_library_says_what_it_was_built_for(library: Path):
    if torch.version.cuda is None:
        pytest.skip("this torch was built without CUDA: the library is compiled, and cannot be loaded")
    listed = torch.ops.visionlab.cuda_build().split("architectures ")[1]
    assert {int(arch) // 10 for arch in listed.split(",")} == ARCHITECTURES

"""A test file under torchrun: what two processes found beside what one did."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from visionlab import distributed

Found = dict[str, torch.Tensor]
"""Losses, gradients and state of some steps: ``step 0, loss rpn/boxes``, ``step 0, gradient of …``, ``state: …``."""


def launch(file: str, folder: Path) -> list[Any]:
    """Run a file as the main module of two processes that ``save`` what they find, and return it by rank."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", file, str(folder)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def save(found: Any) -> None:
    """Write what this process found, and leave the others."""
    torch.save(found, Path(sys.argv[1]) / f"{distributed.rank()}.pt")
    distributed.stop()


def differences(one: Found, other: Found) -> list[str]:
    """Return what differs by more than 1e-9, relative to the largest number of each, and by how much.

    What is 0 but for rounding, such as the gradient of a bias that the loss cannot see, is measured against 1e-6 of the
    largest number of its kind. What is not finite differs from everything.
    """
    assert one.keys() == other.keys()
    kinds = {name: name.split(" of ")[0].split(":")[0] for name in one}
    sizes = {name: float(value.abs().max()) for name, value in one.items()}
    largest = {kind: max(size for name, size in sizes.items() if kinds[name] == kind) for kind in set(kinds.values())}
    found = []
    for name, value in one.items():
        scale = max(sizes[name], 1e-6 * largest[kinds[name]])
        error = float((value - other[name]).abs().max() / scale)
        if not (error <= 1e-9 and value.isfinite().all() and other[name].isfinite().all()):
            found.append(f"{name}: {error:.1e}")
    return found

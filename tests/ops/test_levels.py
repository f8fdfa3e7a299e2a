"""All instruction sets give one answer: the same bits from vectors, nearly the same from the CUDA arithmetic.

At each of them the answer does not depend on the number of threads.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract import FORMATS, Contract

from visionlab import _native

FOLDER = Path(__file__).parent
pytestmark = pytest.mark.skipif(not _native.cpu_library().loaded, reason="installed without the compiled operators")


def answers() -> dict[str, list[torch.Tensor]]:
    """Every operator's answer and gradients, at the level in force."""
    result = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        text = path.read_text()
        if path.stem == Path(__file__).stem or ("(Contract)" not in text and "def same_at_every_level" not in text):
            continue
        for name, value in vars(importlib.import_module(path.stem)).items():
            if name == "same_at_every_level":
                result[f"same {path.stem}"] = value()
            elif isinstance(value, type) and issubclass(value, Contract) and value is not Contract:
                result |= {f"{path.stem} {name} {settings}": found for settings, found in of_contract(value).items()}
    return result


def of_contract(contract: type[Contract]) -> dict[str, list[torch.Tensor]]:
    result = {}
    for channels_last in FORMATS:
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            tensors = contract().tensors(torch.float32, channels_last, 40)
            kind = "fused" if contract.fused else "exact"
            result[f"{channels_last} {deterministic} {kind}"] = contract().run(tensors)
    torch.use_deterministic_algorithms(False)
    return result


@pytest.mark.parametrize("level", ["scalar", pytest.param("baseline", marks=pytest.mark.slow)])
def test_levels_agree(level: str, tmp_path: Path):
    environment = {**os.environ, "VISIONLAB_SIMD": level, "PYTHONPATH": str(FOLDER.parent.parent)}
    command = [sys.executable, __file__, str(tmp_path / "answers.pt")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level
    other = torch.load(tmp_path / "answers.pt", weights_only=True)
    here = answers()
    assert other.keys() == here.keys()
    assert len(here) > 0
    for name, expected in here.items():
        same = name.startswith("same") or (level == "baseline" and name.endswith("exact"))
        tolerance = {"rtol": 0, "atol": 0} if same else {"rtol": 1e-4, "atol": 1e-4}
        for ours, theirs in zip(other[name], expected, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    alone = answers()
    torch.set_num_threads(3)
    for name, tensors in answers().items():
        assert all(torch.equal(*pair) for pair in zip(tensors, alone[name], strict=True)), f"{name}: threads matter"
    torch.save(alone, sys.argv[1])
    print(torch.ops.visionlab.simd_level())

"""A run whose backbone and neck are compiled: the same names, the same numbers, and it goes on where it stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import DETECT, PRETRAIN, read_file, read_rows, visionlab, write_config
from torch import nn

from visionlab.train import loop
from visionlab.train.loop import Training

ROOT = Path(__file__).parents[1]
TRAIN = {**DETECT["train"], "ema_decay": 0.9}


@pytest.fixture
def traced(monkeypatch):
    """Trace modules without generating code, which takes long; return the modules that were compiled."""
    compile, seen = nn.Module.compile, []
    monkeypatch.setattr(nn.Module, "compile", lambda self: seen.append(self) or compile(self, backend="eager"))
    torch._dynamo.reset()
    return seen


def run(folder: Path, name: str, **sections) -> Path:
    assert visionlab("train", write_config(folder, DETECT, name, checkpoints={"every": 1, "keep": 3}, **sections)) == 0
    return folder / name


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(tmp_path, traced, monkeypatch):
    monkeypatch.setattr("visionlab.run.write_report", lambda folder: folder)
    plain, compiled = run(tmp_path, "plain", train=TRAIN), run(tmp_path, "compiled", train={**TRAIN, "compile": True})
    assert [type(module).__name__ for module in traced] == ["Backbone", "FPN"]
    one, other = (read_file(folder / "detector.safetensors")[1] for folder in (plain, compiled))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
    one, other = (torch.load(folder / "checkpoints" / "step_00000003.pt") for folder in (plain, compiled))
    assert one["states"]["task"].keys() == other["states"]["task"].keys()

    # It goes on from a checkpoint to the same weights.
    expected = other["states"]["task"]
    for file in (compiled / "checkpoints" / "step_00000003.pt", compiled / "detector.safetensors"):
        file.unlink()
    torch._dynamo.reset()
    run(tmp_path, "compiled", train={**TRAIN, "compile": True})
    again = torch.load(compiled / "checkpoints" / "step_00000003.pt")["states"]["task"]
    assert all(torch.equal(again[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_two_compiled_processes_are_one(tmp_path):
    backbone = PRETRAIN["backbone"] | {"norm": "frozen"}
    parts = {part: DETECT[part] | {"samples_per_image": 4000} for part in ("rpn", "head")}
    for name, compile in (("one", False), ("two", True)):
        train = {"steps": 2, "compile": compile}
        write_config(tmp_path, DETECT, name, backbone=backbone, train=train, **parts)
    assert visionlab("train", tmp_path / "one.yaml") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["tools/train.py", str(tmp_path / "two.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(read_rows(tmp_path / "one"), read_rows(tmp_path / "two"), strict=True):
        for key in (key for key in ours if key.startswith("loss")):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3)


@pytest.mark.parametrize(
    ("config", "sections", "message"),
    [
        (DETECT, {"backbone": {**DETECT["backbone"], "norm": "sync"}}, "cannot compile backbone.norm sync"),
        (PRETRAIN, {}, "compile"),
    ],
)
def test_what_cannot_be_compiled(config, sections, message, tmp_path, capsys):
    path = write_config(tmp_path, config, train={"steps": 2, "compile": True}, **sections)
    assert visionlab("train", path, "--check") == 2
    assert message in capsys.readouterr().err


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(loop, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile: .* C\+\+ compiler"):
        Training(steps=1, compile=True).on("cpu")
    assert Training(steps=1).on("cpu")

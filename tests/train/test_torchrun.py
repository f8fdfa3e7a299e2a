import os
import subprocess
import sys
from pathlib import Path

import torch
from toy import Toy, toy_run


def test_two_processes_under_torchrun_are_one(tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).parent / "toy.py"), str(tmp_path / "two"), "--plain"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    toy_run(tmp_path / "one", one := Toy(noisy=False), steps=3, accumulate=2, clip_norm=1.0)
    for rank in range(2):
        two = torch.load(tmp_path / f"two/weights_{rank}.pt", weights_only=True)
        for name, parameter in one.named_parameters():
            torch.testing.assert_close(two[name], parameter.detach(), rtol=1e-9, atol=1e-12)

    one_log, two_log = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two"))
    assert len(one_log) == len(two_log) == 2  # only the main process writes

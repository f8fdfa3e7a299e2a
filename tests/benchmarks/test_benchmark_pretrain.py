"""benchmarks/benchmark_pretrain.py runs on a handful of images."""

import sys
from pathlib import Path

import benchmark_pretrain
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / "configs" / "compare" / "cifar" / f"{name}.yaml") for name in ("instance_discrimination", "cpc")]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [["--batch-size", "2"], ["--configs", *CONFIGS]])
def test_every_table_is_printed(options, tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(sys, "argv", ["benchmark_pretrain.py", str(tmp_path), *options, "--batches", "2"])
    assert benchmark_pretrain.main() == 0
    printed = capsys.readouterr().out
    words = "cpc instance_discrimination" if "--configs" in options else "simclr jigsaw ColorJitter lightly"
    for word in words.split():
        assert word in printed

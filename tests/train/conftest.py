"""Lets the tests of this folder, and the processes they start, import toy.py; and fixtures."""

import sys
from pathlib import Path

import pytest

from visionlab.train import loop

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fp16_on_cpu(monkeypatch) -> None:
    """Let through what the loop refuses on a CPU, where scaler and checkpoints do the same as on a GPU."""
    monkeypatch.setattr(loop.Training, "on", lambda training, _device: training)

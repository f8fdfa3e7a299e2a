"""The rise of memory against blocks of known size."""

import json
import os
import subprocess
import sys

import pytest
import torch

from visionlab.train import memory
from visionlab.train.memory import MemoryRise

# In a process of its own: a large one may take the blocks from what it has.
WORK = """
import json, numpy, torch
from visionlab.train.memory import MemoryRise

def block(megabytes):
    return numpy.ones(megabytes * 2**20 // 8)

cpu = torch.device("cpu")
kept = block(100)
large = MemoryRise(cpu)
work = block(60)
del work
during = large.megabytes()
small = MemoryRise(cpu)
work = block(20)
many = [numpy.ones(1000) for _ in range(4000)]
del work, many
after = small.megabytes()
again = MemoryRise(cpu)
many = [numpy.ones(1000) for _ in range(4000)]
print(json.dumps([during, after, again.megabytes()]))
"""


@pytest.mark.skipif(not os.access(memory.CLEAR, os.W_OK), reason="the high-water mark of memory cannot be reset")
def test_each_work_counts_for_itself():
    output = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True).stdout
    during, after, again = json.loads(output)
    assert 55 < during < 75
    assert 45 < after < 65
    assert 25 < again < 45  # although all of it was freed just before


def test_no_figure_where_the_mark_cannot_be_reset(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    assert MemoryRise(torch.device("cpu")).megabytes() is None

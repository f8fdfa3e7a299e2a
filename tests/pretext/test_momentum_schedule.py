"""A method whose momentum rises to 1 at the end of training, as BYOL's does, and goes on where it was interrupted."""

import io
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from small_encoder import SmallEncoder, random_views
from torch import nn

from visionlab.pretext import Pretext, PretextOutput
from visionlab.structures import ViewBatch
from visionlab.tasks.pretrain import PretrainTask
from visionlab.train.checkpoint import Checkpoints
from visionlab.train.log import Log
from visionlab.train.loop import train
from visionlab.train.momentum import MomentumCopy
from visionlab.train.optim import sgd
from visionlab.train.schedule import constant

STEPS, BASE = 6, 0.9


class BYOL(Pretext):
    """Predict a momentum encoder's projection of the other view (Grill et al. 2020, arXiv:2006.07733)."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.projection = nn.Linear(encoder.num_features, 4).double()
        self.predictor = nn.Linear(4, 4).double()
        self.target = MomentumCopy([encoder, self.projection], BASE, final_momentum=1.0)
        self.interrupt_at = None

    def forward(self, batch):
        first, second = (self.encoder.normalize(view) for view in batch.views)
        features = self.encoder.pool(first)
        predicted = self.predictor(self.projection(features))
        with torch.no_grad():
            target = self.target[1](self.target[0].pool(second))
        return PretextOutput({"distance": 2 - 2 * F.cosine_similarity(predicted, target).mean()}, features)

    def after_step(self, step, steps):
        assert steps == STEPS
        if step == self.interrupt_at:
            raise MemoryError
        self.target.update([self.encoder, self.projection], step, steps)


def method() -> BYOL:
    torch.manual_seed(0)
    return BYOL(SmallEncoder())


def batches(start):
    while True:
        yield ViewBatch(list(random_views(2, seed=start)), ids=[0, 1, 2], files=["a", "b", "c"], seeds=[0, 1, 2])
        start += 1


def run(folder: Path, interrupt_at: int | None = None) -> BYOL:
    byol = method()
    byol.interrupt_at = interrupt_at
    task = PretrainTask(byol)
    train(
        task,
        batches,
        sgd(task, lr=0.1),
        constant(STEPS),
        Log(folder, STEPS, Console(file=io.StringIO()), every=1),
        Checkpoints(folder / "checkpoints", "byol", every=2),
        torch.device("cpu"),
        steps=STEPS,
    )
    return byol


def test_the_target_follows_by_the_formula(tmp_path):
    found = run(tmp_path)
    byol = method()
    optimizer = sgd(byol, lr=0.1)
    target = {
        name: value.clone() for name, value in nn.ModuleList([byol.encoder, byol.projection]).state_dict().items()
    }
    stream = batches(0)
    for step in range(STEPS):
        byol.target.load_state_dict(target | {"steps": torch.tensor(STEPS)})
        byol(next(stream)).losses["distance"].backward()
        optimizer.step()
        optimizer.zero_grad()
        share = 1 - (1 - BASE) * (math.cos(math.pi * step / STEPS) + 1) / 2
        for name, value in nn.ModuleList([byol.encoder, byol.projection]).state_dict().items():
            target[name] = share * target[name] + (1 - share) * value
    for name, value in target.items():
        torch.testing.assert_close(found.target.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole").state_dict()
    with pytest.raises(MemoryError):
        run(tmp_path / "interrupted", interrupt_at=3)
    found = run(tmp_path / "interrupted").state_dict()
    assert all(torch.equal(found[name], value) for name, value in whole.items())

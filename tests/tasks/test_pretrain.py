"""What the pretraining task logs of a method."""

import torch

from visionlab.pretext import PretextOutput
from visionlab.structures import ViewBatch
from visionlab.tasks.pretrain import PretrainTask


class Method(torch.nn.Module):
    """A method whose embedding is given."""

    def __init__(self, embedding, accuracy=0.25, projection=None):
        super().__init__()
        self.accuracy, self.projection = torch.tensor(accuracy), projection
        self.embedding = torch.nn.Parameter(embedding)
        self.steps = []

    def forward(self, batch):
        metrics = {"accuracy": self.accuracy}
        return PretextOutput({"guess": self.embedding.sum()}, self.embedding, metrics, self.projection)

    def after_step(self, step, steps):
        self.steps.append((step, steps))

    def warnings(self, output):
        return ["odd"] if output.metrics["accuracy"] > 0.5 else []


BATCH = ViewBatch([torch.zeros(8, 3, 2, 2, dtype=torch.uint8)])


def test_meters_are_the_methods_and_those_of_collapse():
    task = PretrainTask(Method(torch.eye(8)))
    assert task.meters() == {}
    assert task.warnings() == []
    assert set(task(BATCH)) == {"guess"}
    meters = task.meters()
    assert meters["accuracy"] == 0.25
    # Each of 8 unit vectors has one coordinate of 1: a standard deviation of sqrt(7)/8 in 8 dimensions.
    assert abs(meters["embedding_std"] - (7 / 8) ** 0.5) < 1e-6
    assert abs(meters["effective_rank"] - 7) < 1e-4
    assert all(isinstance(value, float) for value in meters.values())
    assert task.warnings() == []


def test_what_is_kept_for_the_meters_holds_no_graph():
    task = PretrainTask(Method(torch.eye(8)))
    task(BATCH)
    assert not task._last.embedding.requires_grad
    assert task._last.losses == {}


def test_a_collapse_is_warned_of():
    task = PretrainTask(Method(torch.ones(8, 4)))
    task(BATCH)
    assert "COLLAPSED" in task.warnings()[0]


def test_the_method_hears_of_steps():
    task = PretrainTask(Method(torch.eye(8)))
    task.after_step(3, 9)
    assert task.pretext.steps == [(3, 9)]


def test_a_projection_has_meters_and_warnings_of_its_own():
    task = PretrainTask(Method(torch.eye(8), projection=torch.ones(8, 4).requires_grad_()))
    task(BATCH)
    assert task.meters()["projection_std"] < 1e-6
    assert task.meters()["embedding_std"] > 0.9
    assert ["projection" in warning for warning in task.warnings()] == [True]
    assert not task._last.projection.requires_grad


def test_a_method_may_warn_of_its_own_numbers():
    task = PretrainTask(Method(torch.eye(8), accuracy=0.75))
    task(BATCH)
    assert task.warnings() == ["odd"]

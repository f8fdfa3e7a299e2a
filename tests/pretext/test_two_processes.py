"""Two gloo processes with half of each batch against one process with the whole: every method, in double precision."""

import math

import pytest
import torch
from small_methods import IMAGES, METHODS, batch_of, build
from two_processes import differences, launch, save

from visionlab import distributed
from visionlab.models.norm import batch_norms
from visionlab.tasks.pretrain import PretrainTask

STEPS, BATCH = 3, 8
# Batch statistics of each process are its own: there the two must differ, or else this test would see nothing.
PER_PROCESS = "rotation with norm train"


def train(method: str) -> dict[str, torch.Tensor]:
    """Return losses, gradients and state of three steps on this process's share of each batch."""
    distributed.start(torch.device("cpu"))
    rank, share = distributed.rank(), BATCH // distributed.world_size()
    norm = "train" if method == PER_PROCESS else "frozen"
    task = PretrainTask(build(method.partition(" with")[0], norm=norm).double())
    for layer in batch_norms(task.pretext.encoder):
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)  # a fresh network has blocks that are scaled by 0
    replica = distributed.replicate(task, torch.device("cpu")).train()
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.001, momentum=0.9)
    found: dict = {}
    for step in range(STEPS):
        ids = [(step * BATCH + i) % IMAGES for i in range(BATCH)][rank * share : (rank + 1) * share]
        torch.manual_seed(100 * step + rank)  # nothing may depend on the generators of a process
        losses = replica(batch_of(task.pretext, ids, epoch=step))
        sum(losses.values()).backward()
        for name, loss in losses.items():
            found[f"step {step}, loss {name}"] = distributed.average(loss)
        for name, parameter in trained.items():
            found[f"step {step}, gradient of {name}"] = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(step, STEPS)
    return found | {f"state: {name}": value.clone() for name, value in task.state_dict().items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    return launch(__file__, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1 + 2e-9])
def test_what_differs_or_is_not_finite_is_seen(value, place):
    same = {"state: a": torch.ones(3).double(), "state: b": torch.ones(3).double()}
    other = same | {"state: a": torch.tensor([1, value, 1], dtype=torch.float64)}
    assert differences(same, same) == []
    assert [line.partition(": ")[0] for line in differences(*((same, other), (other, same))[place])] == ["state"]
    if not math.isfinite(value):
        assert len(differences(other, other)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_losses_gradients_and_state_are_those_of_one_process(method, two):
    one = train(method)
    gradients = [name for name in one if "gradient" in name]
    assert any(one[name].abs().max() > 1e-3 for name in gradients)
    for rank in range(2):
        assert differences(one, two[rank][method]) == []


def test_batch_statistics_of_a_process_are_seen(two):
    assert differences(train(PER_PROCESS), two[0][PER_PROCESS])


if __name__ == "__main__":
    save({method: train(method) for method in (*METHODS, PER_PROCESS)})

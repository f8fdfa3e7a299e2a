"""Two gloo processes with half of each batch against one process with the whole: every method, in double precision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_methods import IMAGES, METHODS, batch_of, build

from visionlab import distributed
from visionlab.models.norm import batch_norms
from visionlab.tasks.pretrain import PretrainTask

STEPS, BATCH = 3, 8
# Batch statistics of each process are its own: there the two must differ, or else this test would see nothing.
PER_PROCESS = "rotation with norm train"


def train(method: str) -> dict:
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
        task.after_step(step)
    return found | {f"state: {name}": value.clone() for name, value in task.state_dict().items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, folder]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def differences(one: dict, other: dict) -> list[str]:
    """Return what differs by more than 1e-9, relative to the largest number of each, and by how much.

    What is 0 but for rounding, such as the gradient of a bias that the loss cannot see, is measured against 1e-6 of the
    largest number of its kind.
    """
    assert one.keys() == other.keys()
    kinds = {name: name.split(" of ")[0].split(":")[0] for name in one}
    sizes = {name: float(value.abs().max()) for name, value in one.items()}
    largest = {kind: max(size for name, size in sizes.items() if kinds[name] == kind) for kind in set(kinds.values())}
    found = []
    for name, value in one.items():
        scale = max(sizes[name], 1e-6 * largest[kinds[name]])
        error = float((value - other[name]).abs().max()) / scale
        if error > 1e-9:
            found.append(f"{name}: {error:.1e}")
    return found


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
    results = {method: train(method) for method in (*METHODS, PER_PROCESS)}
    torch.save(results, Path(sys.argv[1]) / f"{distributed.rank()}.pt")
    distributed.stop()

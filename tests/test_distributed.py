"""Two real processes over gloo against one process that holds everything."""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from visionlab import distributed

ROWS = 3  # of each process


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2 * ROWS, 4, generator=generator).double(), torch.rand(4, 5, generator=generator).double()


def contrast(own: Tensor, everyone: Tensor, first: int) -> Tensor:
    """Cross entropy of each own row against all rows: a loss that needs the rows of every process."""
    logits = own @ everyone.T
    return nn.functional.cross_entropy(logits, torch.arange(first, first + len(own)))


def process(folder: Path) -> None:
    """Do on one of two processes all that the tests look at."""
    device = torch.device("cpu")
    distributed.start(device)
    rank = distributed.rank()
    rows, weight = inputs()
    found = {"size": distributed.world_size(), "main": distributed.is_main()}
    found["objects"] = distributed.gather_objects({"rank": rank})
    found["broadcast"] = distributed.broadcast(f"from {rank}")
    found["average"] = distributed.average(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T * (rank + 1))
    found["count"] = distributed.average(torch.tensor(3 + rank))

    net = nn.Linear(4, 5, bias=False).double()
    net.weight.data.copy_(weight.T)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of settings that torch is about to drop
        replica = distributed.replicate(net, device)
    own = replica(rows[rank * ROWS : (rank + 1) * ROWS])
    contrast(own, distributed.gather(own), rank * ROWS).backward()
    found["gradient"] = net.weight.grad

    transposed = torch.full((2, 3), float(rank)).T.requires_grad_()
    gathered = distributed.gather(transposed)
    (gathered * torch.arange(12.0).reshape(6, 2)).sum().backward()
    found["gathered"], found["asked"] = gathered.detach(), transposed.grad

    net.weight.grad = None
    for micro in range(2):
        row = rank * ROWS + micro
        with distributed.unsynced(replica) if micro == 0 else torch.enable_grad():
            replica(rows[row : row + 1]).square().sum().backward()
    found["accumulated"] = net.weight.grad

    norm = nn.BatchNorm1d(4).double()
    norm(rows[rank * ROWS : (rank + 1) * ROWS])
    distributed.share_buffers(norm)
    found["running_mean"] = norm.running_mean
    torch.save(found, folder / f"{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[1]
    started = []
    for rank in range(2):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        command = [sys.executable, __file__, str(folder)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for one in started:
        _, errors = one.communicate(timeout=300)
        assert one.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_everyone_knows_the_others(found):
    for rank, one in enumerate(found):
        assert (one["size"], one["main"]) == (2, rank == 0)
        assert one["objects"] == [{"rank": 0}, {"rank": 1}]
        assert one["broadcast"] == "from 0"
        assert torch.equal(one["average"], torch.tensor([[1.5, 4.5], [3.0, 6.0]]))
        assert one["count"] == 3.5


def test_a_loss_over_gathered_rows_has_the_gradient_of_one_process(found):
    rows, weight = inputs()
    weight = weight.T.clone().requires_grad_()
    outputs = rows @ weight.T
    contrast(outputs, outputs, 0).backward()
    for one in found:
        torch.testing.assert_close(one["gradient"], weight.grad, rtol=1e-9, atol=1e-12)


def test_gather_keeps_the_order_and_sums_what_all_ask(found):
    expected = torch.cat([torch.zeros(3, 2), torch.ones(3, 2)])
    for rank, one in enumerate(found):
        assert torch.equal(one["gathered"], expected)
        asked = 2 * torch.arange(12.0).reshape(6, 2)[3 * rank : 3 * rank + 3]
        assert torch.equal(one["asked"], asked)


def test_gradients_add_up_before_they_are_averaged(found):
    rows, weight = inputs()
    weight = weight.T.clone().requires_grad_()
    for rank in range(2):
        (rows[rank * ROWS : rank * ROWS + 2] @ weight.T).square().sum().div(2).backward()
    for one in found:
        torch.testing.assert_close(one["accumulated"], weight.grad, rtol=1e-9, atol=1e-12)


def test_buffers_are_those_of_the_main_process(found):
    expected = 0.1 * inputs()[0][:ROWS].mean(0)
    for one in found:
        torch.testing.assert_close(one["running_mean"], expected)


def test_a_single_process_needs_no_group():
    value = torch.rand(2, 3, requires_grad=True)
    module = nn.Linear(2, 2)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather(value) is value
    assert torch.equal(distributed.average(value), value)
    assert distributed.gather_objects(3) == [3]
    assert distributed.broadcast(3) == 3
    assert distributed.replicate(module, torch.device("cpu")) is module
    distributed.share_buffers(module)
    with distributed.unsynced(module):
        pass


if __name__ == "__main__":
    process(Path(sys.argv[1]))

"""NT-Xent against equation 1 of the paper, written as scalar loops, and against itself on two processes."""

import math
import os

import pytest
import torch
import torch.multiprocessing as mp

from visionlab import distributed
from visionlab.pretext.losses import nt_xent


def equation_1(first, second, temperature):
    """Mean over all 2N ordered positive pairs of -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t))."""
    rows = torch.cat([first, second]).tolist()
    n = len(first)

    def similarity(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(math.exp(similarity(rows[i], rows[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity(rows[i], rows[j]) / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1(temperature):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    loss, _ = nt_xent(first, second, temperature)
    assert loss.item() == pytest.approx(equation_1(first, second, temperature), rel=1e-12)


def test_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5)[0], (first, second))


def test_accuracy_counts_positives_that_are_nearest():
    first = torch.eye(4)
    assert nt_xent(first, first.clone(), 0.1)[1] == 1
    assert nt_xent(first, first.roll(1, dims=0), 0.1)[1] == 0


def test_a_single_image_has_no_negatives():
    with pytest.raises(
        ValueError, match=r"^batch_size: expected at least 2 images over all processes to contrast, got 1$"
    ):
        nt_xent(torch.ones(1, 3), torch.ones(1, 3), 0.1)


def test_half_precision_computes_in_float32():
    first, second = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    half, _ = nt_xent(first.bfloat16(), second.bfloat16(), 0.1)
    assert half.dtype == torch.float32
    assert half == nt_xent(first.bfloat16().float(), second.bfloat16().float(), 0.1)[0]


def _two_processes(rank: int, port: int, folder: str):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.start(torch.device("cpu"))
    weight, first, second = torch.load(f"{folder}/input.pt")
    weight.requires_grad_()
    mine = slice(3 * rank, 3 * rank + 3)
    loss, _ = nt_xent(first[mine] @ weight, second[mine] @ weight, 0.2)
    loss.backward()
    result = distributed.average(loss), distributed.average(weight.grad)
    if rank == 0:
        torch.save(result, f"{folder}/output.pt")
    distributed.stop()


def test_two_processes_equal_one(tmp_path, free_port):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    first, second = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    torch.save((weight, first, second), tmp_path / "input.pt")
    mp.spawn(_two_processes, (free_port, str(tmp_path)), nprocs=2)
    loss, gradient = torch.load(tmp_path / "output.pt")
    weight.requires_grad_()
    whole, _ = nt_xent(first @ weight, second @ weight, 0.2)
    whole.backward()
    torch.testing.assert_close(loss, whole.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-10, atol=1e-14)

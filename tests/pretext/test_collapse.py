"""The collapse meters against embeddings whose answer is known."""

import pytest
import torch

from visionlab.pretext.collapse import collapse_warnings, effective_rank, embedding_std


def sphere(rows=4096, dimensions=16):
    return torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_std_of_even_directions_is_one():
    assert embedding_std(sphere()) == pytest.approx(1, abs=0.01)
    assert embedding_std(7 * sphere()) == pytest.approx(1, abs=0.01)


def test_std_of_one_direction_is_zero():
    assert embedding_std(torch.ones(8, 5) * torch.arange(1, 9)[:, None]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5, 12])
def test_effective_rank_of_equal_singular_values_is_their_number(rank):
    left, _ = torch.linalg.qr(sphere(200, 12) - sphere(200, 12).mean(0))
    right, _ = torch.linalg.qr(sphere(12, 12))
    assert effective_rank(left[:, :rank] @ right[:rank]) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_ignores_the_mean_and_the_scale():
    rows = sphere(64, 8)
    assert effective_rank(100 + 3 * rows) == pytest.approx(effective_rank(rows).item(), rel=1e-3)


def test_effective_rank_of_equal_rows_is_one():
    assert effective_rank(torch.ones(8, 4)) == pytest.approx(1, abs=1e-3)


def test_warnings():
    rows = sphere(64, 8)
    assert collapse_warnings(rows) == []
    assert "COLLAPSED" in collapse_warnings(torch.ones(64, 8) + 1e-4 * rows)[0]
    line = torch.linspace(-1, 1, 64)[:, None] * torch.ones(8)
    assert "COLLAPSED to a line" in collapse_warnings(line)[0]

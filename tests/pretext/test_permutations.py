"""Permutation sets against the paper's algorithm, written out, and against what can be reached at most."""

import hashlib
from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
import torch

from visionlab.pretext.permutations import _choose, distant_permutations
from visionlab.seeding import derive_seed


def algorithm_1(tiles, count, seed):
    """Keep a matrix of distances between chosen and remaining permutations; move over the column of largest sum."""
    remaining = [list(order) for order in permutations(range(tiles))]
    chosen = [remaining.pop(derive_seed(seed, "permutations") % len(remaining))]
    while len(chosen) < count:
        distances = [sum(sum(a != b for a, b in zip(p, q, strict=True)) for q in chosen) for p in remaining]
        chosen.append(remaining.pop(distances.index(max(distances))))
    return chosen


@pytest.mark.parametrize(("tiles", "count"), [(1, 1), (3, 6), (4, 24), (5, 20), (6, 12)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_choice_is_that_of_the_papers_algorithm(tiles, count, seed):
    assert distant_permutations(tiles, count, seed=seed).tolist() == algorithm_1(tiles, count, seed)


def distances(orders):
    """Return the Hamming distance of every pair."""
    apart = (orders[:, None] != orders[None]).sum(2)
    return apart[tuple(torch.triu_indices(len(orders), len(orders), 1))].double()


def largest_mean_distance(tiles, count):
    """No set beats one in which every tile stands at every place equally often."""
    often, rest = divmod(count, tiles)
    pairs = rest * comb(often + 1, 2) + (tiles - rest) * comb(often, 2)
    return tiles * (1 - pairs / comb(count, 2))


@pytest.mark.parametrize(
    ("count", "mean", "least"),
    # The paper's ablation of sets gives 8.08 and 2 for 100 permutations, 8.00 and 2 for 1000.
    [(2, 9, 9), (9, 9, 9), (10, 8.8, 2), (100, 8.08, 2), (1000, 8.00, 2)],
)
def test_mean_distances_are_the_largest_there_are(count, mean, least):
    apart = distances(distant_permutations(9, count))
    assert apart.mean() == pytest.approx(largest_mean_distance(9, count), rel=1e-12)
    assert apart.mean() == pytest.approx(mean, abs=0.01)
    assert apart.min() == least


def test_the_bound_is_one():
    for count in (2, 4, 7):
        random = torch.tensor(list(permutations(range(4))))
        sets = (distances(random[list(choice)]).mean() for choice in combinations(range(0, 24, 2), count))
        assert max(sets) <= largest_mean_distance(4, count) + 1e-12


def test_sets_are_stable_and_begin_alike():
    long = distant_permutations(9, 100)
    assert long.dtype == torch.int64
    assert torch.equal(distant_permutations(9, 40), long[:40])
    assert not torch.equal(distant_permutations(9, 40, seed=1), long[:40])
    assert len({tuple(row) for row in long.tolist()}) == 100
    np.testing.assert_array_equal(long.sort(1).values, np.tile(np.arange(9), (100, 1)))
    assert long[0].tolist() == [3, 7, 8, 1, 2, 0, 4, 6, 5]
    long[0] = 0  # what a caller does to a set must not reach the next one
    assert distant_permutations(9, 100)[0].tolist() == [3, 7, 8, 1, 2, 0, 4, 6, 5]


def test_a_set_is_made_once():
    _choose.cache_clear()
    first = distant_permutations(7, 30, seed=3)
    again = distant_permutations(7, 30, seed=3)
    assert torch.equal(first, again)
    assert (_choose.cache_info().misses, _choose.cache_info().hits) == (1, 1)
    distant_permutations(7, 30, seed=4)
    distant_permutations(7, 31, seed=3)
    assert (_choose.cache_info().misses, _choose.cache_info().hits) == (3, 1)


@pytest.mark.parametrize(
    ("seed", "digest"),
    [(0, "b8b11426fd4edd54"), (1, "52c386e14ab47a5b")],
)
def test_the_papers_set_is_the_same_in_every_process(seed, digest):
    """Labels of a checkpoint are numbers of permutations: what is made anew has to be what was made then."""
    numbers = distant_permutations(9, 1000, seed=seed).to(torch.uint8).numpy()
    assert hashlib.sha256(numbers.tobytes()).hexdigest().startswith(digest)


@pytest.mark.parametrize(
    ("tiles", "count", "message"),
    [
        (4, 25, "permutations: expected at most 24 of at most 9 tiles, got 25 of 4"),
        (16, 10, "permutations: expected at most 362880 of at most 9 tiles, got 10 of 16"),
        (9, 0, "count: expected at least 1"),
    ],
)
def test_more_than_there_are_is_refused(tiles, count, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        distant_permutations(tiles, count)

"""Permutations of tiles that differ from each other in as many places as can be."""

from __future__ import annotations

from functools import cache
from math import factorial

import numpy as np
import torch
from torch import Tensor

from visionlab.checks import check_at_least
from visionlab.seeding import derive_seed

_TAKEN = 1 << 31  # more places than any permutation shares with all others
MOST_TILES = 9  # all 9! permutations fit in memory, 10! and more take seconds for each one that is chosen


def distant_permutations(tiles: int, count: int, *, seed: int = 0) -> Tensor:
    """Choose permutations one by one, each with the largest mean Hamming distance to those chosen before.

    The first is drawn at random. Of several that are equally far, the first in lexicographic order is taken. A longer
    set begins with the shorter one.

    The size of a set is its count of permutations, any up to ``tiles!``. A set is kept in memory, so a process makes it
    only once. A cache on disk would save nothing: the paper's 1000 of 9 tiles take half a second, another process makes
    the same set from the same seed, and a checkpoint holds the set it was trained with.

    Args:
        tiles: how many tiles a permutation orders, 9 at most.
        count: how many permutations to choose, the size of the set.
        seed: another seed, another first permutation.

    Returns:
        ``(count, tiles)`` int64; each row holds every number from 0 to ``tiles - 1`` once.

    Raises:
        ValueError: there are not so many permutations.

    Source: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", 2016,
    arXiv:1603.09246, algorithm 1.
    """
    check_at_least(1, tiles=tiles, count=count)
    if tiles > MOST_TILES or count > factorial(tiles):
        raise ValueError(
            f"permutations: expected at most {factorial(min(tiles, MOST_TILES))} of at most {MOST_TILES} tiles, "
            f"got {count} of {tiles}"
        )
    return torch.from_numpy(_choose(tiles, count, seed).astype(np.int64))


@cache
def _choose(tiles: int, count: int, seed: int) -> np.ndarray:
    # One row for each place: the tile that stands there, in each of all permutations.
    every = np.ascontiguousarray(_every_permutation(tiles).T)
    # The mean distance is largest where the number of places shared with those chosen before is smallest.
    shared = np.zeros(every.shape[1], np.uint32)
    equal, same = np.empty(every.shape[1], bool), np.empty(every.shape[1], np.uint8)
    chosen = [derive_seed(seed, "permutations") % every.shape[1]]
    while len(chosen) < count:
        same[:] = 0
        for place in every:
            np.equal(place, place[chosen[-1]], out=equal)
            same += equal.view(np.uint8)
        shared += same
        shared[chosen[-1]] = _TAKEN
        chosen.append(int(shared.argmin()))
    return every[:, chosen].T


def _every_permutation(tiles: int) -> np.ndarray:
    """Return all permutations in lexicographic order, ``(tiles!, tiles)`` uint8."""
    table = np.zeros((1, 1), np.uint8)
    for size in range(2, tiles + 1):
        first = np.repeat(np.arange(size, dtype=np.uint8), len(table))[:, None]
        rest = np.tile(table, (size, 1))
        table = np.hstack([first, rest + (rest >= first)])
    return table

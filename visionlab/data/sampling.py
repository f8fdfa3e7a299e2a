"""Which images make up the batch of a step: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from visionlab.checks import check_at_least
from visionlab.seeding import derive_seed

Key = tuple[int, int]
"""An epoch and the index of an image: together with the run's seed, all there is to know about a sample."""


class Sampler:
    """Deals out batches from an endless row of epochs, each of which holds every image once, in an order of its own.

    A batch may end one epoch and begin the next, so that no image is left out, however many there are. The batch of all
    processes together does not depend on their number; each takes its slice.

    Args:
        length: number of images.
        seed: the run's seed.
        batch_size: images per step over all processes.
        rank: number of this process.
        world_size: number of processes.
        groups: for each image the number of its group. Batches are of one group, but for the few that the rest of
            each epoch and the first images of the next make up.

    Raises:
        ValueError: there is no image, or the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] | None = None,
    ):
        if length < 1:
            raise ValueError("expected at least 1 image to train on, got none")
        share = share_of(batch_size, world_size)
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.slice = slice(rank * share, (rank + 1) * share)
        self.groups = None if groups is None else np.asarray(groups)
        self.order = lru_cache(maxsize=2)(self._order)

    def batch(self, step: int) -> list[Key]:
        """Return the epoch and index of each image of this process at a step, counted from 0."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)[self.slice]
        return [(epoch, int(self.order(epoch)[place])) for epoch, place in (divmod(p, self.length) for p in positions)]

    def batches(self, start_step: int = 0) -> Iterator[list[Key]]:
        """Yield the batches from a step on, forever."""
        step = start_step
        while True:
            yield self.batch(step)
            step += 1

    def _order(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.length)
        if self.groups is None:
            return order
        # The batch that the epoch before began is filled first; from there on batches can be of one group.
        started = -epoch * self.length % self.batch_size
        head, rest = order[:started], order[started:]
        members = [rest[self.groups[rest] == group] for group in np.unique(self.groups)]
        whole = [
            part[: len(part) // self.batch_size * self.batch_size].reshape(-1, self.batch_size) for part in members
        ]
        batches = np.concatenate(whole)
        mixed = np.random.default_rng(derive_seed(self.seed, "batches", epoch)).permutation(len(batches))
        left = [part[len(part) // self.batch_size * self.batch_size :] for part in members]
        return np.concatenate([head, batches[mixed].ravel(), *left])


def share_of(batch_size: int, world_size: int) -> int:
    """Return how many images of each batch are one process's.

    Raises:
        ValueError: there is none, or the processes cannot have equally many.
    """
    check_at_least(1, batch_size=batch_size)
    if batch_size % world_size:
        raise ValueError(
            f"batch_size: expected a multiple of {world_size}, the number of processes that share it, got {batch_size}"
        )
    return batch_size // world_size


def shard(length: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Return this process's batches of indices: over all processes each of ``length`` images comes once, in order.

    Args:
        length: number of images.
        batch_size: images per batch over all processes; the last may be smaller.
        rank: number of this process.
        world_size: number of processes.
    """
    mine, share = range(rank, length, world_size), share_of(batch_size, world_size)
    return [list(mine[start : start + share]) for start in range(0, len(mine), share)]

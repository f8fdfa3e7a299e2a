"""Batches are a function of seed and step: nothing lost, nothing twice, whatever the number of processes."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from visionlab.data.sampling import Sampler, shard, share_of


def groups_of(length):
    return [(index * 7) % 3 // 2 for index in range(length)]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("length", [1, 5, 6, 7, 23, 60, 61])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_epoch_holds_every_image_once(length, world_size, grouped):
    groups = groups_of(length) if grouped else None
    ranks = [
        Sampler(length, seed=4, batch_size=6, rank=rank, world_size=world_size, groups=groups)
        for rank in range(world_size)
    ]
    steps = 3 * length  # that is 18 epochs
    seen = Counter(key for step in range(steps) for sampler in ranks for key in sampler.batch(step))
    assert seen == Counter((epoch, index) for epoch in range(18) for index in range(length))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batch_of_one_process(world_size, grouped):
    groups = groups_of(25) if grouped else None
    one = Sampler(25, seed=0, batch_size=12, groups=groups)
    ranks = [
        Sampler(25, seed=0, batch_size=12, rank=r, world_size=world_size, groups=groups) for r in range(world_size)
    ]
    for step in range(20):
        assert [key for sampler in ranks for key in sampler.batch(step)] == one.batch(step)


def test_any_step_can_be_the_first():
    all_along = list(islice(Sampler(17, seed=1, batch_size=4, groups=groups_of(17)).batches(), 40))
    from_there = list(islice(Sampler(17, seed=1, batch_size=4, groups=groups_of(17)).batches(23), 17))
    assert all_along[23:] == from_there
    assert Sampler(17, seed=2, batch_size=4).batch(0) != Sampler(17, seed=1, batch_size=4).batch(0)


def test_epochs_are_in_different_random_orders():
    sampler = Sampler(200, seed=0, batch_size=10)
    first, second = ([index for step in range(a, a + 20) for _, index in sampler.batch(step)] for a in (0, 20))
    assert first != second
    assert abs(np.corrcoef(first, range(200))[0, 1]) < 0.25
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.25


def test_grouped_batches_are_of_one_group_but_for_those_at_the_seam_of_epochs():
    groups = groups_of(61)
    sampler = Sampler(61, seed=0, batch_size=4, groups=groups)
    mixed = [len({groups[index] for _, index in sampler.batch(step)}) > 1 for step in range(610)]
    assert sum(mixed) <= 2 * 40  # 40 epochs; at most two seam batches each
    places = [groups[sampler.batch(step)[0][1]] for step in range(15)]
    assert len(set(places)) == 2
    assert places != sorted(places), "groups take turns"


def test_batches_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match=r"^batch_size: expected at least 1, got 0$"):
        share_of(0, 1)
    with pytest.raises(ValueError, match=r"^batch_size: expected a multiple of 3, the number of processes"):
        Sampler(10, seed=0, batch_size=8, world_size=3)
    with pytest.raises(ValueError, match="at least 1 image"):
        Sampler(0, seed=0, batch_size=8)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once(length, world_size):
    shards = [shard(length, batch_size=2 * world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for batches in shards for batch in batches for index in batch) == list(range(length))
    assert all(0 < len(batch) <= 2 for batches in shards for batch in batches)
    sizes = [sum(map(len, batches)) for batches in shards]
    assert max(sizes) - min(sizes) <= 1

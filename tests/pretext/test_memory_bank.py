"""Queues and memory banks against what a few lines of arithmetic say."""

import pytest
import torch

from visionlab.pretext.memory_bank import MemoryBank, Queue


def test_a_queue_replaces_the_oldest():
    queue = Queue(5, 2)
    assert queue.keys.norm(dim=1).tolist() == pytest.approx([1] * 5)
    start = queue.keys.clone()
    keys = torch.arange(12.0).reshape(6, 2)
    queue.enqueue(keys[:3])
    assert torch.equal(queue.keys, start)
    queue.update()
    assert torch.equal(queue.keys, torch.cat([keys[:3], start[3:]]))
    queue.enqueue(keys[3:5])  # of two micro-batches, the first is the older
    queue.enqueue(keys[5:])
    queue.update()
    assert torch.equal(queue.keys, torch.cat([keys[5:], keys[1:5]]))
    queue.update()
    assert torch.equal(queue.keys, torch.cat([keys[5:], keys[1:5]]))


def test_a_queue_smaller_than_a_batch_keeps_its_end():
    queue = Queue(2, 1)
    queue.enqueue(torch.arange(5.0)[:, None])
    queue.update()
    assert sorted(queue.keys[:, 0].tolist()) == [3, 4]


def test_a_queue_is_in_the_state_with_its_place():
    queue, other = Queue(4, 2), Queue(4, 2)
    queue.enqueue(torch.ones(3, 2))
    queue.update()
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(torch.zeros(2, 2))
        each.update()
    assert torch.equal(queue.keys, other.keys)
    assert queue.keys[:, 0].tolist() == [0, 1, 1, 0]


def test_a_bank_moves_the_rows_of_its_images():
    bank = MemoryBank(2, momentum=0.5).double()
    bank.prepare(4)
    assert bank.rows.norm(dim=1).tolist() == pytest.approx([1] * 4)
    start = bank.rows.clone()
    bank.collect(torch.tensor([2, 0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double())
    bank.update()
    for image, row in ((2, [1, 0]), (0, [0, 1])):
        moved = (start[image] + torch.tensor(row)) / 2
        torch.testing.assert_close(bank.rows[image], moved / moved.norm())
    assert torch.equal(bank.rows[[1, 3]], start[[1, 3]])


def test_of_an_image_twice_in_a_batch_the_later_counts():
    bank = MemoryBank(2, momentum=0)
    bank.prepare(3)
    bank.collect(torch.tensor([1, 0, 1]), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    bank.update()
    torch.testing.assert_close(bank.rows[:2], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))

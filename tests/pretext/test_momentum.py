"""Slow copies, queues and memory banks against what a few lines of arithmetic say."""

import pytest
import torch
from torch import nn

from visionlab.pretext.momentum import MemoryBank, MomentumCopy, Queue


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def test_a_copy_is_the_moving_average_of_weights_and_statistics():
    online = network()
    copy = MomentumCopy([online], momentum=0.75)
    expected = {name: value.clone() for name, value in online.state_dict().items()}
    for step in range(3):
        online(torch.randn(5, 3, dtype=torch.float64))  # moves the running statistics
        for parameter in online.parameters():
            parameter.data.add_(step + 1)
        copy.follow([online])
        for name, value in online.state_dict().items():
            moving = value.is_floating_point()
            expected[name] = 0.75 * expected[name] + 0.25 * value if moving else value.clone()
    for name, value in copy[0].state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)
    assert copy[0][1].num_batches_tracked == 3


def test_a_copy_has_no_gradient_and_stays_in_evaluation_mode():
    copy = MomentumCopy([network()], momentum=0.9)
    nn.ModuleList([copy]).train()
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not any(module.training for module in copy.modules())


def test_what_networks_share_their_copies_share():
    online = network()
    copy = MomentumCopy([online, nn.Sequential(online[0])], momentum=0.9)
    assert copy[1][0] is copy[0][0]
    assert copy[0][0] is not online[0]


def test_momentum_is_a_share():
    with pytest.raises(ValueError, match=r"^momentum: expected a number in \[0, 1\], got 1.5$"):
        MomentumCopy([], momentum=1.5)


def test_a_queue_replaces_the_oldest():
    queue = Queue(5, 2)
    assert queue.keys.norm(dim=1).tolist() == pytest.approx([1] * 5)
    start = queue.keys.clone()
    keys = torch.arange(12.0).reshape(6, 2)
    queue.put(keys[:3])
    assert torch.equal(queue.keys, start)
    queue.advance()
    assert torch.equal(queue.keys, torch.cat([keys[:3], start[3:]]))
    queue.put(keys[3:5])  # of two micro-batches, the first is the older
    queue.put(keys[5:])
    queue.advance()
    assert torch.equal(queue.keys, torch.cat([keys[5:], keys[1:5]]))
    queue.advance()
    assert torch.equal(queue.keys, torch.cat([keys[5:], keys[1:5]]))


def test_a_queue_smaller_than_a_batch_keeps_its_end():
    queue = Queue(2, 1)
    queue.put(torch.arange(5.0)[:, None])
    queue.advance()
    assert sorted(queue.keys[:, 0].tolist()) == [3, 4]


def test_a_queue_is_in_the_state_with_its_place():
    queue, other = Queue(4, 2), Queue(4, 2)
    queue.put(torch.ones(3, 2))
    queue.advance()
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.put(torch.zeros(2, 2))
        each.advance()
    assert torch.equal(queue.keys, other.keys)
    assert queue.keys[:, 0].tolist() == [0, 1, 1, 0]


def test_a_bank_moves_the_rows_of_its_images():
    bank = MemoryBank(2, momentum=0.5).double()
    bank.prepare(4)
    assert bank.rows.norm(dim=1).tolist() == pytest.approx([1] * 4)
    start = bank.rows.clone()
    bank.put(torch.tensor([2, 0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double())
    bank.advance()
    for image, row in ((2, [1, 0]), (0, [0, 1])):
        moved = (start[image] + torch.tensor(row)) / 2
        torch.testing.assert_close(bank.rows[image], moved / moved.norm())
    assert torch.equal(bank.rows[[1, 3]], start[[1, 3]])


def test_of_an_image_twice_in_a_batch_the_later_counts():
    bank = MemoryBank(2, momentum=0)
    bank.prepare(3)
    bank.put(torch.tensor([1, 0, 1]), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    bank.advance()
    torch.testing.assert_close(bank.rows[:2], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))

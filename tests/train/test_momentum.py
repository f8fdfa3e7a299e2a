"""Momentum encoders against what a few lines of arithmetic say."""

import math

import pytest
import torch
from torch import nn

from visionlab.train.momentum import MomentumCopy


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
        copy.update([online], step, 3)
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


def test_momentum_rises_along_a_cosine_to_one():
    copy = MomentumCopy([network()], 0.996, final_momentum=1.0)
    found = [copy.momentum_at(step, 100) for step in (0, 25, 50, 100)]
    expected = [1 - (1 - 0.996) * (math.cos(math.pi * step / 100) + 1) / 2 for step in (0, 25, 50, 100)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert found[0] == 0.996
    assert found[-1] == 1.0
    assert MomentumCopy([network()], 0.9).momentum_at(50, 100) == 0.9


def test_an_update_uses_the_momentum_of_its_step():
    online = network()
    copy = MomentumCopy([online], 0.5, final_momentum=1.0)
    before = copy[0][0].weight.clone()
    online[0].weight.data.add_(1.0)
    copy.update([online], step=2, steps=4)
    torch.testing.assert_close(copy[0][0].weight, before + 0.25, rtol=1e-12, atol=1e-15)


def test_a_training_of_another_length_is_refused_where_the_momentum_depends_on_it():
    online = network()
    copy, other = (MomentumCopy([online], 0.9, final_momentum=1.0) for _ in range(2))
    copy.update([online], 0, 10)
    other.load_state_dict(copy.state_dict())
    other.update([online], 1, 10)
    with pytest.raises(ValueError, match=r"^steps: expected 10, as before, since the momentum depends on them, got 20"):
        copy.update([online], 1, 20)
    constant = MomentumCopy([online], 0.9)
    constant.update([online], 0, 10)
    constant.update([online], 1, 20)
    assert "steps" not in constant.state_dict()

import contextlib

import pytest
import torch
from torch import nn

from visionlab.train.ema import WeightAverage


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.rand(3), requires_grad=False)
        self.register_buffer("queue", torch.rand(2))


def test_all_floating_state_is_averaged_and_counters_are_not():
    torch.manual_seed(0)
    net = Net()
    average = WeightAverage(net, 0.5)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    frozen = net.frozen.clone()
    for step in range(12):
        net.norm(torch.rand(4, 3))
        net.norm.weight.data.add_(torch.rand(3))
        net.queue = torch.rand(2)  # a module may replace a buffer
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * net.state_dict()[name] for name, value in expected.items()}
    assert "norm.num_batches_tracked" not in average.state_dict()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert torch.equal(average.state_dict()["frozen"], frozen)


def test_the_module_holds_the_average_inside_the_block_only():
    net = Net()
    average = WeightAverage(net, 0.5)
    net.norm.weight.data.fill_(3.0)
    average.update(0)
    with contextlib.suppress(KeyError), average.applied():
        assert torch.allclose(net.norm.weight, torch.tensor(2.8))  # 0.1 * 1 + 0.9 * 3
        raise KeyError("an evaluation that fails")
    assert torch.equal(net.norm.weight, torch.full((3,), 3.0))
    assert torch.allclose(average.state_dict()["norm.weight"], torch.tensor(2.8))
    average.copy_to_module()
    assert torch.allclose(net.norm.weight, torch.tensor(2.8))


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_without_sense_is_refused(decay):
    with pytest.raises(ValueError, match="ema_decay: expected"):
        WeightAverage(Net(), decay)

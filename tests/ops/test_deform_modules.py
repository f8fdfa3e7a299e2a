"""Modules with their own offset branch."""

import pytest
import torch
from contract import randn
from torch import nn

from visionlab.ops import DeformConv2dPack


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2, "padding": 1}, {"padding": (2, 1), "dilation": (2, 1), "groups": 2, "offset_groups": 4}],
)
def test_starts_as_the_plain_convolution(settings: dict, modulated: bool):
    pack = DeformConv2dPack(8, 6, 3, **settings, modulated=modulated)
    settings = {name: value for name, value in settings.items() if name != "offset_groups"}
    plain = nn.Conv2d(8, 6, 3, **settings)
    missing, unexpected = pack.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["offset_conv.weight", "offset_conv.bias"]
    assert unexpected == []
    input = randn((2, 8, 9, 7), 0)
    torch.testing.assert_close(pack(input), plain(input), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_learns_where_to_look(modulated: bool):
    """One tap that must look one cell to the right, which only the offset can do."""
    torch.manual_seed(0)
    pack = DeformConv2dPack(1, 1, 1, bias=False, modulated=modulated)
    nn.init.ones_(pack.weight)
    pack.weight.requires_grad_(False)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) / 8 + 1
    target = (ramp + 1 / 8)[..., 1:-2]
    optimizer = torch.optim.SGD(pack.parameters(), lr=0.5)
    losses = []
    for _ in range(40):
        loss = (pack(ramp)[..., 1:-2] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_every_parameter_learns():
    pack = DeformConv2dPack(4, 4, 3, padding=1, offset_groups=2, modulated=True)
    pack(randn((1, 4, 6, 6), 0)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pack.parameters())
    assert pack.offset_conv.weight.grad.count_nonzero() > 0


def test_says_what_it_is():
    text = "8, 6, kernel_size=(3, 3), stride=(1, 1), bias=False, offset_groups=2, modulated=True"
    assert DeformConv2dPack(8, 6, 3, bias=False, offset_groups=2, modulated=True).extra_repr() == text
    with pytest.raises(ValueError, match="in_channels: expected a multiple of offset_groups, 3, got 8"):
        DeformConv2dPack(8, 6, 3, offset_groups=3)


def test_reset_sets_the_branch_to_zero():
    module = DeformConv2dPack(2, 3, 3)
    torch.nn.init.ones_(module.offset_conv.weight)
    weight = module.weight.clone()
    module.reset_parameters()
    assert module.offset_conv.weight.count_nonzero() == 0
    assert not module.weight.equal(weight)

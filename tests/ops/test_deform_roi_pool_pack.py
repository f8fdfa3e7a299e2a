"""The deformable RoI pools with an offset branch of their own."""

import pytest
import torch
from contract import randn
from slow_bins import make_boxes

from visionlab.ops import DeformPSRoIPoolPack, DeformRoIPoolPack, deform_ps_roi_pool, deform_roi_pool

PACKS = [
    (lambda modulated: DeformRoIPoolPack(6, 2, 0.5, 2, hidden=8, modulated=modulated), deform_roi_pool, 6),
    (
        lambda modulated: DeformPSRoIPoolPack(6, 2, 0.5, classes=3, part_size=(1, 2), hidden=8, modulated=modulated),
        deform_ps_roi_pool,
        24,
    ),
]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("make", "pool", "channels"), PACKS)
def test_offsets_start_at_zero_and_learn(make, pool, channels: int, modulated: bool):
    pack = make(modulated)
    input, boxes = randn((2, channels, 12, 13), 1), make_boxes(5, size=24)
    ratio = {"sampling_ratio": 2} if pool is deform_roi_pool else {}
    plain = pool(input, boxes, None, 2, 0.5, **ratio)
    torch.testing.assert_close(pack(input, boxes), plain * 0.5 if modulated else plain)
    optimizer = torch.optim.SGD(pack.parameters(), lr=1.0)
    for _ in range(2):  # zeros in the last layer keep the first step from those before it
        optimizer.zero_grad()
        (pack(input, boxes) - 1).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad.count_nonzero() for parameter in pack.parameters())
    assert not pack(input, boxes).equal(plain)


def test_offsets_come_from_the_box_as_it_lies():
    pack = DeformRoIPoolPack(3, (2, 3), hidden=4)
    torch.nn.init.normal_(pack.branch[-1].weight)
    input, boxes = randn((2, 3, 12, 13), 1), make_boxes(5)
    offset, mask = pack.branch(deform_roi_pool(input, boxes, None, (2, 3)))
    assert mask is None
    assert offset.shape == (5, 2, 2, 3)
    assert pack(input, boxes).equal(deform_roi_pool(input, boxes, offset, (2, 3)))


def test_no_boxes_and_repr_and_messages():
    pack = DeformPSRoIPoolPack(4, 2, hidden=4, modulated=True)
    assert pack(torch.zeros(1, 16, 5, 5), torch.zeros(0, 5)).shape == (0, 4, 2, 2)
    assert "gamma=0.1, modulated=True" in repr(pack)
    assert "gamma=0.1, modulated=False" in repr(DeformRoIPoolPack(3))
    with pytest.raises(ValueError, match="DeformPSRoIPoolPack: classes: expected a divisor of the channels, 4, got 3"):
        DeformPSRoIPoolPack(4, classes=3)

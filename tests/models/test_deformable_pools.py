"""Pools whose bins move: at first they do not, and one step is enough that they do."""

import pytest
import torch
from torch import Tensor

from visionlab.models.deformable_pools import DeformablePSRoIPool, DeformableRoIPool
from visionlab.ops import roi_align
from visionlab.ops.deform_ps_roi_pool import deform_ps_roi_pool

ROIS = torch.tensor([[0, 3.2, 5.1, 50.7, 60.4], [1, 0, 0, 31, 12], [0, 40, 2, 63, 30]], dtype=torch.float64)
MODULATED = pytest.mark.parametrize("modulated", [False, True])


def make_feature(channels: int) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@MODULATED
@pytest.mark.parametrize("hidden", [None, 8])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_at_first_a_deformable_pool_is_roi_align(size, hidden, modulated):
    pool = DeformableRoIPool(4, [8], output_size=size, offset_hidden=hidden, modulated=modulated).double()
    peer = roi_align(make_feature(4), ROIS, size, 1 / 8, 4, aligned=True)
    torch.testing.assert_close(pool([make_feature(4)], ROIS), peer, rtol=0, atol=1e-10)


@MODULATED
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_at_first_a_deformable_position_sensitive_pool_is_the_same_without_offsets(size, sets, modulated):
    feature, settings = make_feature(4 * size**2), {"output_size": size, "modulated": modulated}
    pool = DeformablePSRoIPool(4 * size**2, [8], 5, sets, **settings).double()
    moves = pool.moves_of([make_feature(5)])
    assert moves[0].shape[1] == (2 * sets + modulated) * size**2
    peer = deform_ps_roi_pool(feature, ROIS, None, size, 1 / 8, sample_per_part=4)
    torch.testing.assert_close(pool([feature], ROIS, moves), peer, rtol=0, atol=1e-10)


def test_bins_move_by_shares_of_the_roi():
    pool = DeformableRoIPool(1, [8], output_size=2, sampling_ratio=1).double()
    ramp = torch.arange(8, dtype=torch.float64).expand(1, 1, 8, 8) + 0.5  # at x in pixels of the map, x
    roi = torch.tensor([[0.0, 16, 16, 32, 32]], dtype=torch.float64)  # from 2 to 4
    torch.testing.assert_close(pool([ramp], roi)[0, 0, 0], torch.tensor([2.5, 3.5], dtype=torch.float64))
    with torch.no_grad():
        pool.offset_fc[-2].bias[0] = 3.0  # the first bin, to the right: 3 * gamma * 2 pixels of the map
    torch.testing.assert_close(pool([ramp], roi)[0, 0, 0], torch.tensor([3.1, 3.5], dtype=torch.float64))


@pytest.mark.parametrize("sets", [1, 3])
def test_each_set_of_a_position_sensitive_pool_has_offsets_of_its_own(sets):
    pool = DeformablePSRoIPool(3, [1], 3, sets, output_size=1, sample_per_part=1).double()
    ramp = torch.arange(32, dtype=torch.float64).expand(1, 3, 32, 32)  # at the center of each pixel its x
    with torch.no_grad():
        pool.offset_conv.bias.copy_(torch.stack((torch.arange(sets) + 1.0, torch.zeros(sets)), dim=1).flatten())
    roi = torch.tensor([[0.0, 4, 4, 13, 13]], dtype=torch.float64)  # 10 wide, from 3.5
    moved = 3.5 + 0.1 * 10 * (torch.arange(3) // (3 // sets) + 1.0)
    torch.testing.assert_close(pool([ramp], roi).flatten(), moved.double())


@MODULATED
@pytest.mark.parametrize(
    "kind", [DeformableRoIPool, DeformablePSRoIPool], ids=["deform_roi_pool", "deform_ps_roi_pool"]
)
def test_one_step_moves_the_bins(kind, modulated):
    pool = kind(36, [8], output_size=3, modulated=modulated).double()
    feature = make_feature(36)
    still = pool([feature], ROIS)
    still.square().sum().backward()
    for name, parameter in pool.named_parameters():
        assert name.startswith("offset_")
        assert parameter.grad.any(), name
    torch.optim.SGD(pool.parameters(), lr=1e-2).step()
    assert all(parameter.any() for parameter in pool.parameters())
    assert (pool([feature], ROIS) - still).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (DeformableRoIPool, {"gamma": 0.0}),
        (DeformableRoIPool, {"sampling_ratio": -1}),
        (DeformableRoIPool, {"offset_hidden": 0}),
        (DeformablePSRoIPool, {"gamma": -1.0}),
        (DeformablePSRoIPool, {"sample_per_part": 0}),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(kind, setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}: expected"):
        kind(49, [8], **setting)


def test_sets_divide_the_pooled_channels():
    with pytest.raises(ValueError, match=r"^sets: expected a divisor of the 2 pooled channels, got 3$"):
        DeformablePSRoIPool(98, [8], None, 3)

"""The feature pyramid against its definition and torchvision's."""

import pytest
import torch
from torch.nn import functional as F

from visionlab.models.fpn import FPN
from visionlab.models.vit_pyramid import SimpleFeaturePyramid


def features(channels=(8, 16, 32), height=13, width=18) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, c, -(-height // 2**i), -(-width // 2**i)) for i, c in enumerate(channels)]


def test_top_down_by_definition():
    fpn = FPN([8, 16], [4, 8], channels=6, extra_levels=0)
    fine, coarse = features((8, 16))
    with torch.no_grad():
        top = fpn.lateral[1](coarse)
        below = fpn.lateral[0](fine)
        for y in range(below.shape[2]):
            for x in range(below.shape[3]):
                below[:, :, y, x] += top[:, :, y * top.shape[2] // below.shape[2], x * top.shape[3] // below.shape[3]]
        expected = [fpn.output[0](below), fpn.output[1](top)]
        for level, peer in zip(fpn([fine, coarse]), expected, strict=True):
            torch.testing.assert_close(level, peer)


@pytest.mark.parametrize(("levels", "extra"), [(4, 1), (3, 1), (3, 0), (1, 2)])
def test_levels_and_strides(levels, extra):
    channels, strides = [8, 16, 32, 64][:levels], [4, 8, 16, 32][:levels]
    fpn = FPN(channels, strides, channels=6, extra_levels=extra)
    maps = fpn(features(tuple(channels)))
    assert fpn.strides == [4 * 2**i for i in range(levels + extra)]
    assert fpn.channels == [6] * (levels + extra)
    for stride, level in zip(fpn.strides, maps, strict=True):
        assert level.shape == (2, 6, -(-13 * 4 // stride), -(-18 * 4 // stride))


def test_group_norm():
    fpn = FPN([8, 16], [4, 8], channels=32, norm="group")
    assert sum(isinstance(module, torch.nn.GroupNorm) for module in fpn.modules()) == 4
    assert len(fpn(features((8, 16)))) == 3
    with pytest.raises(ValueError, match="multiple of 32"):
        FPN([8], [4], channels=48, norm="group")


def test_same_as_torchvision():
    peers = pytest.importorskip("torchvision.ops.feature_pyramid_network")
    ours = FPN([8, 16, 32], [4, 8, 16], channels=6)
    peer = peers.FeaturePyramidNetwork([8, 16, 32], 6, extra_blocks=peers.LastLevelMaxPool())
    for i in range(3):
        peer.inner_blocks[i][0].load_state_dict(ours.lateral[i].state_dict())
        peer.layer_blocks[i][0].load_state_dict(ours.output[i].state_dict())
    maps = features()
    expected = peer({str(i): level for i, level in enumerate(maps)})
    for level, other in zip(ours(maps), expected.values(), strict=True):
        torch.testing.assert_close(level, other)
    assert F.max_pool2d(ours(maps)[-2], 1, 2).equal(ours(maps)[-1])


@pytest.mark.parametrize("settings", [{"channels": 0}, {"extra_levels": -1}], ids=str)
@pytest.mark.parametrize("neck", [FPN, SimpleFeaturePyramid])
def test_settings_out_of_range_are_named(neck, settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: expected"):
        neck([8], [4], **settings)

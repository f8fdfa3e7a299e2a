"""Which level a RoI is pooled from, and that it is."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from visionlab.models.deformable_pools import DeformablePSRoIPool, DeformableRoIPool
from visionlab.models.pool import Pool, PositionSensitivePool
from visionlab.models.pools import POOLS, PSRoIAlignPool, PSRoIMeanPool, RoIAlignPool, RoIMaxPool
from visionlab.ops import roi_align
from visionlab.ops.deform_ps_roi_pool import deform_ps_roi_pool
from visionlab.ops.deform_roi_pool import deform_roi_pool
from visionlab.ops.ps_roi_align import ps_roi_align
from visionlab.ops.ps_roi_pool import ps_roi_pool
from visionlab.ops.roi_pool import roi_pool

STRIDES = [4, 8, 16]


def levels_of(boxes: Tensor, strides: list[int], canonical_size: float) -> Tensor:
    pool = RoIAlignPool(3, strides, canonical_size=canonical_size)
    return pool.levels_of(torch.cat((torch.zeros(len(boxes), 1), boxes), dim=1))


def test_levels_by_equation_1():
    generator = torch.Generator().manual_seed(0)
    sides = torch.rand(500, 2, generator=generator) * 900 + 1
    levels = levels_of(torch.cat((torch.zeros(500, 2), sides), dim=1), [4, 8, 16, 32], 224)
    for (width, height), level in zip(sides.tolist(), levels.tolist(), strict=True):
        k = math.floor(4 + math.log2(math.sqrt(width * height) / 224))
        assert level == min(max(k, 2), 5) - 2
    assert levels.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("side", "stride"), [(0, 4), (111.9, 4), (112, 8), (223.9, 8), (224, 16), (448, 32), (5000, 32)]
)
def test_levels_at_the_borders(side, stride):
    strides = [4, 8, 16, 32]
    box = torch.tensor([[10.0, 10.0, 10 + side, 10 + side]])
    assert strides[levels_of(box, strides, 224).item()] == stride
    # The canonical size moves all borders.
    half = torch.tensor([[10.0, 10.0, 10 + side / 2, 10 + side / 2]])
    assert strides[levels_of(half, strides, 112).item()] == stride


def test_levels_of_other_strides():
    boxes = torch.tensor([[0.0, 0.0, 112.0, 112.0], [0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 448.0, 448.0]])
    assert levels_of(boxes, [8, 16], 224).tolist() == [0, 1, 1]
    assert levels_of(boxes, [16, 32], 224).tolist() == [0, 0, 1]


def make_features(channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, 64 // stride, 64 // stride, generator=generator) for stride in STRIDES]


def one_level(pool: Pool, feature: Tensor, roi: Tensor, stride: int) -> Tensor:
    size, scale = pool.output_size, 1 / stride
    if isinstance(pool, RoIAlignPool):
        return roi_align(feature, roi, size, scale, pool.sampling_ratio, pool.aligned)
    if isinstance(pool, RoIMaxPool):
        return roi_pool(feature, roi, size, scale)
    if isinstance(pool, PSRoIMeanPool):
        return ps_roi_pool(feature, roi, size, scale)
    if isinstance(pool, PSRoIAlignPool):
        return ps_roi_align(feature, roi, size, scale, pool.sampling_ratio)
    mask = None
    if isinstance(pool, DeformableRoIPool):
        still = deform_roi_pool(feature, roi, None, size, scale, pool.sampling_ratio).flatten(1)
        for layer in list(pool.offset_fc)[1:-1]:
            still = layer(still)
        moved = still.reshape(1, -1, size, size)
        if pool.modulated:
            mask = 2 / (1 + (-moved[:, 2:]).exp())
        return deform_roi_pool(feature, roi, moved[:, :2], size, scale, pool.sampling_ratio, pool.gamma, mask)
    parts = {"output_size": size, "spatial_scale": scale, "sample_per_part": pool.sample_per_part}

    def still_of(conv: torch.nn.Conv2d) -> Tensor:
        maps = torch.einsum("nchw,oc->nohw", feature, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]
        return deform_ps_roi_pool(maps, roi, **parts)

    if pool.offset_mask is not None:
        mask = 2 / (1 + (-still_of(pool.offset_mask)).exp())
    return deform_ps_roi_pool(feature, roi, still_of(pool.offset_conv), **parts, gamma=pool.gamma, mask=mask)


SETTINGS = {"output_size": 3, "canonical_size": 56}


@pytest.mark.parametrize(
    "pool",
    [
        RoIAlignPool(9, STRIDES, **SETTINGS),
        RoIAlignPool(9, STRIDES, aligned=True, **SETTINGS),
        RoIMaxPool(9, STRIDES, **SETTINGS),
        PSRoIMeanPool(9, STRIDES, **SETTINGS),
        PSRoIAlignPool(9, STRIDES, **SETTINGS),
        DeformableRoIPool(9, STRIDES, **SETTINGS),
        DeformableRoIPool(9, STRIDES, modulated=True, offset_hidden=8, gamma=0.2, **SETTINGS),
        DeformablePSRoIPool(9, STRIDES, **SETTINGS),
        DeformablePSRoIPool(9, STRIDES, modulated=True, sample_per_part=2, **SETTINGS),
    ],
    ids=lambda pool: type(pool).__name__,
)
def test_each_roi_comes_from_its_level(pool):
    features = [feature.requires_grad_() for feature in make_features(9)]
    generator = torch.Generator().manual_seed(1)
    for parameter in pool.parameters():  # bins that move
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    rois = torch.tensor(
        [[0, 1, 2, 60, 62], [1, 0, 0, 12, 9], [0, 5, 5, 33, 34], [1, 3, 1, 14, 15]], dtype=torch.float32
    )
    levels = [2, 0, 1, 0]
    expected = torch.cat(
        [one_level(pool, features[level], roi[None], STRIDES[level]) for roi, level in zip(rois, levels, strict=True)]
    )
    pooled = pool(features, rois)
    torch.testing.assert_close(pooled, expected)
    weights = torch.rand_like(expected)
    inputs = [*features, *pool.parameters()]
    grads = torch.autograd.grad((pooled * weights).sum(), inputs)
    torch.testing.assert_close(grads, torch.autograd.grad((expected * weights).sum(), inputs), rtol=1e-4, atol=1e-4)


def channels_for(name: str, size: int) -> int:
    return 3 * size**2 if issubclass(POOLS[name], PositionSensitivePool) else 3


@pytest.mark.parametrize("name", POOLS)
def test_what_every_pool_must_do(name):
    channels = channels_for(name, 5)
    pool = POOLS[name](channels, STRIDES, output_size=5)
    rois = torch.tensor([[0, 1, 2, 60, 62], [1, 0, 0, 12, 9]], dtype=torch.float32)
    features = [feature.requires_grad_() for feature in make_features(channels)]
    pooled = pool(features, rois)
    assert pool.channels == 3
    assert pooled.shape == (2, 3, 5, 5)
    none = pool(features, rois[:0])
    assert none.shape == (0, 3, 5, 5)
    none.sum().backward()
    assert all(feature.grad is None or not feature.grad.any() for feature in features)
    with pytest.raises(ValueError, match="twice the one before"):
        POOLS[name](49, [4, 16])
    for setting in ("output_size", "canonical_size"):
        with pytest.raises(ValueError, match=f"^{setting}: expected"):
            POOLS[name](49, STRIDES, **{setting: 0})
    assert "settings" not in inspect.signature(POOLS[name]).parameters  # they are given one by one


@pytest.mark.parametrize("name", POOLS)
def test_of_one_level_every_roi_is_pooled(name):
    channels = channels_for(name, 3)
    pool = POOLS[name](channels, [8], output_size=3)
    feature = make_features(channels)[1]
    rois = torch.tensor([[0, 1, 2, 60, 62], [1, 0, 0, 12, 9]], dtype=torch.float32)
    torch.testing.assert_close(
        pool([feature], rois), torch.cat([one_level(pool, feature, roi[None], 8) for roi in rois])
    )


@pytest.mark.parametrize("name", [name for name, pool in POOLS.items() if issubclass(pool, PositionSensitivePool)])
@pytest.mark.parametrize("channels", [1, 48, 50])
def test_each_bin_needs_channels_of_its_own(name, channels):
    with pytest.raises(ValueError, match=rf"^output_size: expected k \* k to divide the {channels} channels"):
        POOLS[name](channels, STRIDES)
    assert POOLS[name](channels, STRIDES, output_size=1).channels == channels

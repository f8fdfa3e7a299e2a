"""Which level a RoI is pooled from, and that it is."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from visionlab.models.pools import POOLS, Pool, RoIAlignPool, RoIMaxPool
from visionlab.ops import roi_align
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
    if isinstance(pool, RoIMaxPool):
        return roi_pool(feature, roi, pool.output_size, 1 / stride)
    return roi_align(feature, roi, pool.output_size, 1 / stride, pool.sampling_ratio, pool.aligned)


@pytest.mark.parametrize(
    "pool",
    [RoIAlignPool(3, STRIDES, output_size=3, aligned=aligned, canonical_size=56) for aligned in (False, True)]
    + [RoIMaxPool(3, STRIDES, output_size=3, canonical_size=56)],
    ids=["roi_align", "roi_align aligned", "roi_pool"],
)
def test_each_roi_comes_from_its_level(pool):
    features = [feature.requires_grad_() for feature in make_features()]
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
    grads = torch.autograd.grad((pooled * weights).sum(), features)
    torch.testing.assert_close(grads, torch.autograd.grad((expected * weights).sum(), features))


@pytest.mark.parametrize("name", POOLS)
def test_what_every_pool_must_do(name):
    pool = POOLS[name](3, STRIDES, output_size=5)
    rois = torch.tensor([[0, 1, 2, 60, 62], [1, 0, 0, 12, 9]], dtype=torch.float32)
    features = [feature.requires_grad_() for feature in make_features()]
    pooled = pool(features, rois)
    assert pooled.shape == (2, pool.channels, 5, 5)
    none = pool(features, rois[:0])
    assert none.shape == (0, pool.channels, 5, 5)
    none.sum().backward()
    assert all(feature.grad is None or not feature.grad.any() for feature in features)
    with pytest.raises(ValueError, match="twice the one before"):
        POOLS[name](3, [4, 16])
    for setting in ("output_size", "canonical_size"):
        with pytest.raises(ValueError, match=f"^{setting}: expected"):
            POOLS[name](3, STRIDES, **{setting: 0})
    assert "settings" not in inspect.signature(POOLS[name]).parameters  # they are given one by one

"""Which level a RoI is pooled from, and that it is."""

import math

import pytest
import torch

from visionlab.models.roi_pooling import assign_levels, pool_rois
from visionlab.ops import roi_align


def test_levels_by_equation_1():
    generator = torch.Generator().manual_seed(0)
    sides = torch.rand(500, 2, generator=generator) * 900 + 1
    levels = assign_levels(torch.cat((torch.zeros(500, 2), sides), dim=1), [4, 8, 16, 32], 224)
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
    assert strides[assign_levels(box, strides, 224).item()] == stride
    # The canonical size moves all borders.
    half = torch.tensor([[10.0, 10.0, 10 + side / 2, 10 + side / 2]])
    assert strides[assign_levels(half, strides, 112).item()] == stride


def test_levels_of_other_strides():
    boxes = torch.tensor([[0.0, 0.0, 112.0, 112.0], [0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 448.0, 448.0]])
    assert assign_levels(boxes, [8, 16], 224).tolist() == [0, 1, 1]
    assert assign_levels(boxes, [16, 32], 224).tolist() == [0, 0, 1]


@pytest.mark.parametrize("aligned", [False, True])
def test_each_roi_comes_from_its_level(aligned):
    torch.manual_seed(0)
    strides = [4, 8, 16]
    features = [torch.randn(2, 3, 64 // stride, 64 // stride) for stride in strides]
    rois = torch.tensor(
        [[0, 1, 2, 60, 62], [1, 0, 0, 12, 9], [0, 5, 5, 33, 34], [1, 3, 1, 14, 15]], dtype=torch.float32
    )
    options = {"output_size": 3, "sampling_ratio": 2, "aligned": aligned}
    pooled = pool_rois(features, strides, rois, canonical_size=56, **options)
    for roi, result, level in zip(rois, pooled, [2, 0, 1, 0], strict=True):
        expected = roi_align(features[level], roi[None], spatial_scale=1 / strides[level], **options)
        torch.testing.assert_close(result, expected[0])


def test_no_rois():
    features = [torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(1, 3, 4, 4)]
    pooled = pool_rois(
        features, [4, 8], torch.zeros(0, 5), output_size=7, sampling_ratio=2, aligned=False, canonical_size=224
    )
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert features[0].grad.abs().sum() == 0

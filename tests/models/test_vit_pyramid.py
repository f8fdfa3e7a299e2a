"""The simple feature pyramid: strides, sizes, layers of the paper, gradients."""

import pytest
import torch
from torch import nn

from visionlab.models.backbone import Backbone
from visionlab.models.vit_pyramid import SimpleFeaturePyramid


def test_levels_of_a_vit():
    backbone = Backbone(name="vit_tiny_patch16_224")
    pyramid = SimpleFeaturePyramid(backbone.channels, backbone.strides, channels=32)
    assert pyramid.strides == [4, 8, 16, 32, 64]
    assert pyramid.channels == [32] * 5
    levels = pyramid(backbone(torch.randn(2, 3, 64, 96)))
    assert [tuple(level.shape) for level in levels] == [(2, 32, -(-64 // s), -(-96 // s)) for s in pyramid.strides]
    sum(level.sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in [*pyramid.parameters(), *backbone.parameters()])


def test_layers_are_those_of_the_paper():
    """Stride 4 of patch 16: two transposed convolutions with LayerNorm and GELU between, then 1x1 and 3x3."""
    pyramid = SimpleFeaturePyramid([192], [16], channels=64)
    kinds = [type(layer).__bases__[0] if "Norm" in type(layer).__name__ else type(layer) for layer in pyramid.levels[0]]
    ends = [nn.Conv2d, nn.LayerNorm, nn.Conv2d, nn.LayerNorm]
    assert kinds == [nn.ConvTranspose2d, nn.LayerNorm, nn.GELU, nn.ConvTranspose2d, *ends]
    assert [layer.out_channels for layer in pyramid.levels[0] if isinstance(layer, nn.ConvTranspose2d)] == [96, 48]
    assert [type(level[0]) for level in pyramid.levels[1:]] == [nn.ConvTranspose2d, nn.Conv2d, nn.MaxPool2d]


def test_the_level_of_the_backbones_own_stride_agrees_with_its_formula():
    pyramid = SimpleFeaturePyramid([12], [16], channels=8, level_strides=[16], extra_levels=0)
    features = torch.randn(1, 12, 4, 5)
    first, _, second, _ = pyramid.levels[0]
    expected = nn.functional.layer_norm(first(features).movedim(1, 3), (8,), eps=1e-6).movedim(3, 1)
    expected = nn.functional.layer_norm(second(expected).movedim(1, 3), (8,), eps=1e-6).movedim(3, 1)
    torch.testing.assert_close(pyramid([features])[0], expected)


def test_levels_do_not_see_each_other():
    pyramid = SimpleFeaturePyramid([12], [16], channels=8, extra_levels=0)
    pyramid([torch.randn(1, 12, 4, 4)])[0].sum().backward()
    assert all(parameter.grad is None for level in pyramid.levels[1:] for parameter in level.parameters())


@pytest.mark.parametrize(("patch", "level_strides"), [(14, [7, 14, 28]), (8, [4, 8, 16, 32]), (32, [4, 8, 16, 32, 64])])
def test_other_patch_sizes(patch, level_strides):
    pyramid = SimpleFeaturePyramid([64], [patch], channels=16, level_strides=level_strides, extra_levels=0)
    levels = pyramid([torch.randn(1, 64, 5, 3)])
    assert [tuple(level.shape[2:]) for level in levels] == [
        (-(-5 * patch // stride), -(-3 * patch // stride)) for stride in level_strides
    ]


@pytest.mark.parametrize("level_strides", [[4, 8], [6], [28, 14], []])
def test_refuses_what_patch_14_does_not_reach(level_strides):
    with pytest.raises(ValueError, match="level_strides"):
        SimpleFeaturePyramid([64], [14], level_strides=level_strides)

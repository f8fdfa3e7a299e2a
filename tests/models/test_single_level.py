"""The one level without a pyramid: passed through, or narrowed."""

import pytest
import torch

from visionlab.models.single_level import SingleLevel


def features() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 8, 7, 9), torch.randn(2, 16, 4, 5)]


def test_the_coarsest_level_passes_through():
    neck, levels = SingleLevel([8, 16], [8, 16]), features()
    assert (neck.channels, neck.strides) == ([16], [16])
    assert neck.proposal_levels == neck.pooled_levels == [0]
    (level,) = neck(levels)
    assert level is levels[1]
    assert neck.state_dict() == {}


def test_narrowed_by_formula():
    neck, levels = SingleLevel([8, 16], [8, 16], channels=3), features()
    torch.nn.init.normal_(neck.conv.bias)
    (level,) = neck(levels)
    assert (neck.channels, neck.strides) == ([3], [16])
    weight = neck.conv.weight[:, :, 0, 0]
    expected = torch.einsum("oc,ncyx->noyx", weight, levels[1]) + neck.conv.bias[:, None, None]
    torch.testing.assert_close(level, expected.clamp(min=0))
    assert (level == 0).any()


def test_any_number_of_levels_and_strides():
    assert SingleLevel([8], [14]).width_and_strides([0]) == (8, [14])
    with pytest.raises(ValueError, match="channels: expected at least 1, got 0"):
        SingleLevel([8], [16], channels=0)

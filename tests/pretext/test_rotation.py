"""The four rotations, checked pixel by pixel."""

import numpy as np
import torch

from visionlab.pretext.rotation import rotations


def test_rotations_are_quarter_turns_counterclockwise():
    image = torch.arange(2 * 3 * 5 * 5, dtype=torch.uint8).reshape(2, 3, 5, 5)
    turned = rotations(image)
    assert turned.shape == (8, 3, 5, 5)
    for turns in range(4):
        for row in range(2):
            expected = np.rot90(image[row].permute(1, 2, 0).numpy(), turns)
            np.testing.assert_array_equal(turned[2 * turns + row].permute(1, 2, 0).numpy(), expected)

"""Anchors worked out by hand, and torchvision's."""

import pytest
import torch

from visionlab.models.anchors import cell_anchors, grid_anchors


def test_cell_by_hand():
    # Area 32 * 32; a ratio of 4 is 64 high and 16 wide.
    expected = [[-16, -16, 16, 16], [-8, -32, 8, 32], [-32, -8, 32, 8]]
    assert cell_anchors([32], [1, 4, 0.25]).tolist() == expected


def test_sizes_vary_fastest_and_coordinates_are_whole():
    anchors = cell_anchors([10, 20], [0.5, 1])
    assert anchors.tolist() == [[-7, -4, 7, 4], [-14, -7, 14, 7], [-5, -5, 5, 5], [-10, -10, 10, 10]]


def test_grid_by_hand():
    cell = torch.tensor([[-1.0, -2.0, 1.0, 2.0], [-3.0, -3.0, 3.0, 3.0]])
    anchors = grid_anchors(cell, (2, 3), (8, 4))
    expected = []
    for row in range(2):
        for column in range(3):
            for x1, y1, x2, y2 in cell.tolist():
                expected.append([x1 + 4 * column, y1 + 8 * row, x2 + 4 * column, y2 + 8 * row])
    assert anchors.tolist() == expected


def test_same_as_torchvision():
    utils = pytest.importorskip("torchvision.models.detection.anchor_utils")
    image_list = pytest.importorskip("torchvision.models.detection.image_list")
    sizes, ratios, strides = ((32, 45), (64, 91), (128, 181)), (0.5, 1.0, 2.0), (8, 16, 32)
    features = [torch.zeros(1, 1, 96 // stride, 128 // stride) for stride in strides]
    images = image_list.ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)])
    expected = utils.AnchorGenerator(sizes, (ratios,) * 3)(images, features)[0]
    ours = [
        grid_anchors(cell_anchors(size, ratios), (96 // stride, 128 // stride), (stride, stride))
        for size, stride in zip(sizes, strides, strict=True)
    ]
    assert torch.equal(torch.cat(ours), expected)

"""Box offsets by their formula, there and back."""

import math

import pytest
import torch

from visionlab.models.box_coding import decode_boxes, encode_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 30), dim=1)


def test_encode_by_formula():
    boxes, references = random_boxes(8, 0), random_boxes(8, 1)
    for box, reference, offsets in zip(
        boxes.tolist(), references.tolist(), encode_boxes(boxes, references, WEIGHTS).tolist(), strict=True
    ):
        width, height = reference[2] - reference[0], reference[3] - reference[1]
        expected = (
            10 * ((box[0] + box[2]) - (reference[0] + reference[2])) / 2 / width,
            10 * ((box[1] + box[3]) - (reference[1] + reference[3])) / 2 / height,
            5 * math.log((box[2] - box[0]) / width),
            5 * math.log((box[3] - box[1]) / height),
        )
        assert offsets == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_decode_is_the_inverse():
    boxes, references = random_boxes(50, 0).double(), random_boxes(50, 1).double()
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, references, WEIGHTS), references, WEIGHTS), boxes)


def test_decode_cuts_growth_and_keeps_shrinking():
    reference = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = decode_boxes(torch.tensor([[0.0, 0.0, 1e9, 1e9]]), reference, (1, 1, 1, 1))
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))
    shrunk = decode_boxes(torch.tensor([[0.0, 0.0, -1e9, -1e9]]), reference, (1, 1, 1, 1))
    assert shrunk.tolist() == [[8.0, 8.0, 8.0, 8.0]]


def test_same_as_torchvision():
    coder = pytest.importorskip("torchvision.models.detection._utils").BoxCoder(WEIGHTS)
    boxes, references = random_boxes(30, 2), random_boxes(30, 3)
    offsets = encode_boxes(boxes, references, WEIGHTS)
    torch.testing.assert_close(offsets, coder.encode_single(boxes, references))
    wild = torch.randn(30, 4) * 20
    torch.testing.assert_close(decode_boxes(wild, references, WEIGHTS), coder.decode_single(wild, references))

"""ps_roi_align against scalar loops, against torchvision, and with hostile input."""

import math

import pytest
import torch
from contract import FORMATS, Contract, randn
from test_roi_pool import make_boxes
from torch import Tensor

from visionlab.ops import PSRoIAlign, ps_roi_align
from visionlab.ops.reference import ps_roi_align as reference

SETTINGS = [(1.0, 2), (0.5, -1), (0.7, 0), (2.0, 3)]


def slow_weights(begin: float, end: float, bins: int, size: int, scale: float, ratio: int) -> list[dict[int, float]]:
    """For each bin, how much each cell counts in the mean of its samples."""
    start, length = begin * scale - 0.5, (end - begin) * scale
    count = ratio if ratio > 0 else math.ceil(length / bins)
    result = []
    for bin in range(bins):
        weights: dict[int, float] = {}
        for i in range(count):
            position = start + bin * length / bins + (i + 0.5) * length / bins / count
            if position < -1 or position > size:
                continue
            position = min(max(position, 0.0), size - 1.0)
            low = int(position)
            for cell, weight in ((low, 1 - (position - low)), (min(low + 1, size - 1), position - low)):
                weights[cell] = weights.get(cell, 0.0) + weight / count
        result.append(weights)
    return result


def slow_pool(input: Tensor, boxes: Tensor, size: tuple[int, int], *settings) -> Tensor:
    """The whole pooling as loops over boxes, classes, bins and cells."""
    classes = input.shape[1] // (size[0] * size[1])
    output = torch.zeros(len(boxes), classes, *size, dtype=torch.float64)
    for k, (image, x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
        rows = slow_weights(y1, y2, size[0], input.shape[2], *settings)
        columns = slow_weights(x1, x2, size[1], input.shape[3], *settings)
        for c in range(classes):
            for i, of_rows in enumerate(rows):
                for j, of_columns in enumerate(columns):
                    plane = input[int(image), (c * size[0] + i) * size[1] + j]
                    for y, a in of_rows.items():
                        for x, b in of_columns.items():
                            output[k, c, i, j] += a * b * plane[y, x]
    return output


class TestPSRoIAlign(Contract):
    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        return randn((2, 12, 9, 11), 1, dtype, channels_last), make_boxes(count, size=10, seed=3, dtype=dtype)

    def call(self, *tensors: Tensor) -> Tensor:
        return ps_roi_align(*tensors, (3, 2), 0.9, 2)

    @pytest.mark.slow
    def test_onnx(self):
        super().test_onnx()


@pytest.mark.parametrize("channels_last", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_scalar_loops(settings: tuple, dtype: torch.dtype, channels_last: bool):
    input = randn((2, 3 * 6, 10, 9), 1, dtype, channels_last).requires_grad_()
    boxes = make_boxes(8, dtype=dtype)
    plain = input.detach().double().requires_grad_()
    output, expected = ps_roi_align(input, boxes, (3, 2), *settings), slow_pool(plain, boxes, (3, 2), *settings)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-5}
    torch.testing.assert_close(output.double(), expected, **tolerance)
    grad = randn(tuple(output.shape), 2, dtype)
    (gradient,) = torch.autograd.grad(output, input, grad)
    (slow_gradient,) = torch.autograd.grad(expected, plain, grad.double())
    torch.testing.assert_close(gradient.double(), slow_gradient, **tolerance)


@pytest.mark.parametrize("classes", [1, 16, 19, 33])
@pytest.mark.parametrize("channels_last", FORMATS)
def test_equals_torchvision(channels_last: bool, classes: int):
    torchvision = pytest.importorskip("torchvision")
    input = randn((2, 9 * classes, 40, 39), 1, channels_last=channels_last).requires_grad_()
    boxes = make_boxes(60, size=40)
    for settings in SETTINGS[:1]:
        output = ps_roi_align(input, boxes, 3, *settings)
        expected = torchvision.ops.ps_roi_align(input, boxes, 3, *settings)
        defined = expected.isfinite().all(3).all(2).all(1)  # torchvision divides by no samples
        torch.testing.assert_close(output[defined], expected[defined], rtol=1e-5, atol=1e-5)
        grad = randn(tuple(output.shape), 2)
        gradients = [torch.autograd.grad(pooled, input, grad)[0] for pooled in (output, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_lists_and_modules_as_torchvision():
    torchvision = pytest.importorskip("torchvision")
    input, boxes = randn((2, 12, 9, 9), 1), [make_boxes(4)[:, 1:].abs(), make_boxes(0)[:, 1:]]
    ours, theirs = PSRoIAlign((2, 3), 0.5, 2), torchvision.ops.PSRoIAlign((2, 3), 0.5, 2)
    torch.testing.assert_close(ours(input, boxes), theirs(input, boxes))
    assert repr(ours) == "PSRoIAlign(output_size=(2, 3), spatial_scale=0.5, sampling_ratio=2)"


def test_what_no_bin_reads_does_not_matter():
    input = randn((1, 4, 9, 9), 1)
    boxes = torch.tensor([[0.0, 1, 1, 5, 5]])
    expected = ps_roi_align(input, boxes, 2)
    input[..., 7:, :], input[..., 7:] = torch.nan, torch.inf
    assert ps_roi_align(input, boxes, 2).equal(expected)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, torch.nan, 0, 1, 1], "boxes: expected finite numbers, got .* in box 2"),
        ([0, 0, 0, torch.inf, 1], "boxes: expected finite numbers, got .* in box 2"),
        ([2, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got 2.* in box 2"),
        ([-1, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got -1.* in box 2"),
        ([0, -1e30, 0, 1e30, 1], "clip boxes to the image or set sampling_ratio"),
    ],
)
def test_hostile_boxes(row: list[float], message: str, plain: bool):
    boxes = make_boxes(4)
    boxes[2] = torch.tensor(row)
    op = reference.ps_roi_align if plain else torch.ops.visionlab.ps_roi_align
    with pytest.raises(RuntimeError, match=message):
        op(randn((2, 4, 5, 5), 1), boxes, 2, 2, 1.0, -1)


@pytest.mark.parametrize(
    ("input", "boxes", "size", "message"),
    [
        (torch.zeros(4, 5, 5), torch.zeros(1, 5), 2, r"input: expected shape \(N, C, H, W\), got \(4, 5, 5\)"),
        (torch.zeros(1, 4, 5, 5), torch.zeros(1, 4), 2, r"boxes: expected shape \(K, 5\).*got \(1, 4\)"),
        (torch.zeros(1, 4, 5, 5), torch.zeros(1, 5), 0, "output_size: expected .* at least 1, got 0"),
        (torch.zeros(1, 6, 5, 5), torch.zeros(1, 5), 2, r"a multiple of 2 \* 2 channels, got shape \(1, 6, 5, 5\)"),
        (torch.zeros(1, 4, 0, 5), torch.zeros(1, 5), 2, "input: expected pixels to pool from"),
    ],
)
def test_messages(input, boxes, size, message: str):
    with pytest.raises(ValueError, match=f"ps_roi_align: .*{message}"):
        ps_roi_align(input, boxes, size)

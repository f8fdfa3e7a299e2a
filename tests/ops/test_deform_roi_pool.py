"""deform_roi_pool against scalar loops, against roi_align, and for hostile arguments."""

import math

import pytest
import torch
from contract import Contract, randn
from slow_bins import Bin, make_boxes, slow
from torch import Tensor

from visionlab.ops import DeformRoIPool, deform_roi_pool, roi_align
from visionlab.ops.reference import deform_roi_pool as reference


def bins_of(input: Tensor, boxes: Tensor, offset: Tensor, scale: float, ratio: int, gamma: float):
    bins = tuple(offset.shape[2:])

    def bin_at(k: int, c: int, i: int, j: int) -> Bin:
        image, x1, y1, x2, y2 = boxes[k].double().tolist()
        width, height = (x2 - x1) * scale, (y2 - y1) * scale
        dx, dy = (offset[k, :, i, j].double() * gamma).tolist()
        axes = []
        for start, length, count, at, shift in (
            (y1, height, bins[0], i, dy * height),
            (x1, width, bins[1], j, dx * width),
        ):
            samples = ratio if ratio > 0 else max(math.ceil(length / count), 0)
            begin = start * scale - 0.5 + at * length / count + shift
            axes.append([begin + (s + 0.5) * length / count / samples for s in range(samples)])
        samples = [(y, x) for y in axes[0] for x in axes[1]]
        return Bin(int(image), c, samples, 1.0, False, gamma * width, gamma * height, (k, 0, i, j))

    return bin_at


def arguments(dtype: torch.dtype, channels_last: bool, channels: int = 3, count: int = 8, size=(11, 13)):
    input = randn((2, channels, *size), 1, dtype, channels_last)
    offset = randn((count, 2, 3, 2), 2, dtype) * 1.5
    mask = randn((count, 1, 3, 2), 3, dtype)
    return input, make_boxes(count, dtype), offset, mask


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [(1.0, 2, 0.1), (0.7, -1, 0.4), (1.3, 3, 0.2)])
def test_equals_scalar_loops(settings, masked: bool, channels_last: bool):
    scale, ratio, gamma = settings
    input, boxes, offset, mask = arguments(torch.float64, channels_last)
    leaves = [input.requires_grad_(), offset.requires_grad_(), *([mask.requires_grad_()] if masked else [])]
    output = deform_roi_pool(input, boxes, offset, (3, 2), scale, ratio, gamma, mask if masked else None)
    grad = randn(tuple(output.shape), 4, torch.float64)
    with torch.no_grad():
        bin_at = bins_of(input, boxes, offset, scale, ratio, gamma)
        expected = slow(input, offset, mask if masked else None, tuple(output.shape), bin_at, grad)
    answers = [output, *torch.autograd.grad(output, leaves, grad)]
    for answer, value in zip(answers, expected, strict=False):
        torch.testing.assert_close(answer, value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("channels", [1, 5, 16, 17, 48, 131])
@pytest.mark.parametrize("channels_last", [False, True])
def test_single_precision_for_any_number_of_channels(channels: int, channels_last: bool):
    input, boxes, offset, mask = arguments(torch.float32, channels_last, channels, 20)
    answers = []
    for dtype in (torch.float32, torch.float64):
        tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in (input, offset, mask)]
        output = deform_roi_pool(tensors[0], boxes.to(dtype), tensors[1], (3, 2), 0.9, 2, 0.3, tensors[2])
        answers.append([output, *torch.autograd.grad(output, tensors, randn(tuple(output.shape), 4, dtype))])
    for single, double in zip(*answers, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("ratio", [2, -1])
def test_without_offsets_is_roi_align(ratio: int):
    input, boxes, offset, mask = arguments(torch.float32, False)
    pooled = roi_align(input, boxes, (3, 2), 0.7, ratio, True)
    torch.testing.assert_close(deform_roi_pool(input, boxes, None, (3, 2), 0.7, ratio), pooled, rtol=0, atol=1e-6)
    zero = torch.zeros_like(offset)
    masked = deform_roi_pool(input, boxes, zero, (3, 2), 0.7, ratio, mask=mask)
    torch.testing.assert_close(masked, pooled * mask, rtol=0, atol=1e-6)
    lists = [boxes[boxes[:, 0] == n, 1:] for n in range(2)]
    ordered = torch.cat([boxes[boxes[:, 0] == n] for n in range(2)])
    assert deform_roi_pool(input, lists, None, 3).equal(deform_roi_pool(input, ordered, None, 3))


def test_offsets_are_shares_of_the_box_horizontal_first():
    input = torch.arange(20.0).repeat(20, 1)[None, None]  # each cell holds its column
    boxes = torch.tensor([[0, 4.0, 4, 8, 12]])
    offset = torch.zeros(1, 2, 1, 1)
    offset[0, 0], offset[0, 1] = 5.0, 3.0
    moved = deform_roi_pool(input, boxes, offset, 1) - deform_roi_pool(input, boxes, None, 1)
    assert moved.item() == pytest.approx(0.1 * 5 * 4)


def test_offsets_beyond_the_border_have_the_true_derivative():
    input = randn((1, 2, 6, 7), 1, torch.float64)
    # The first box samples between -1 and 0, where the map is flat; the last between its last cell and beyond.
    boxes = torch.tensor([[0, -0.6, 1.1, 0.9, 3.4], [0, 5.2, 3.3, 9.1, 7.7]], dtype=torch.float64)
    offset = (randn((2, 2, 2, 2), 2, torch.float64) * 0.2).requires_grad_()
    torch.autograd.gradcheck(lambda offset: deform_roi_pool(input, boxes, offset, 2, 1.0, 2), offset)
    boxes = torch.tensor([[0, -0.4, -0.4, 0.4, 0.4]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(deform_roi_pool(input, boxes, offset, 1, 1.0, 1).sum(), offset)
    assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38])
@pytest.mark.parametrize("plain", [False, True])
def test_an_offset_without_a_place_empties_its_bin(value: float, plain: bool):
    input, boxes, offset, _ = arguments(torch.float32, False)
    boxes = torch.tensor([[0, 1.0, 2, 9, 10]]).repeat(8, 1)
    expected = torch.ops.visionlab.deform_roi_pool(input, boxes, offset, None, 1.0, 2, 0.1)
    offset[0, 0, 1, 1] = value
    op = reference.deform_roi_pool if plain else torch.ops.visionlab.deform_roi_pool
    output = op(input, boxes, offset, None, 1.0, 2, 0.1)
    assert output[0, :, 1, 1].count_nonzero() == 0
    expected[0, :, 1, 1] = 0
    torch.testing.assert_close(output, expected)
    op = reference.deform_roi_pool_backward if plain else torch.ops.visionlab.deform_roi_pool_backward
    gradients = op(torch.ones_like(output), input, boxes, offset, None, 1.0, 2, 0.1, True, True, False)
    assert gradients[0].isfinite().all()
    assert gradients[1][0, :, 1, 1].count_nonzero() == 0


def test_cells_that_no_sample_lies_on_do_not_matter():
    input = torch.full((1, 20, 9, 9), torch.nan)
    input[:, :, 2:5, 2:5] = 1.0
    boxes = torch.tensor([[0, 2.5, 2.5, 4.5, 4.5]])
    assert deform_roi_pool(input, boxes, torch.zeros(1, 2, 2, 2), 2, 1.0, 2).eq(1).all()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, torch.nan, 0, 1, 1], "boxes: expected finite numbers, got .* in box 2"),
        ([0, 0, 0, torch.inf, 1], "boxes: expected finite numbers, got .* in box 2"),
        ([2, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got 2.* in box 2"),
        ([-1, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got -1.* in box 2"),
        (
            [0, -1e30, 0, 1e30, 1],
            "boxes: expected at most 65536 samples .* in box 2; clip boxes to the image or set sampling_ratio",
        ),
    ],
)
def test_hostile_boxes(row: list[float], message: str, plain: bool):
    input, boxes, offset, _ = arguments(torch.float32, False)
    boxes[2] = torch.tensor(row)
    op = reference.deform_roi_pool if plain else torch.ops.visionlab.deform_roi_pool
    with pytest.raises(RuntimeError, match=f"deform_roi_pool: .*{message}"):
        op(input, boxes, offset, None, 1.0, -1, 0.1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": torch.zeros(3, 5, 5)}, r"input: expected shape \(N, C, H, W\), got \(3, 5, 5\)"),
        ({"input": torch.zeros(1, 3, 0, 5)}, "input: expected pixels to pool from"),
        ({"boxes": torch.zeros(1, 4)}, r"boxes: expected shape \(K, 5\), got \(1, 4\)"),
        ({"boxes": [torch.zeros(1, 4)] * 2}, "a list of one tensor for each of 1 images, got 2"),
        ({"offset": torch.zeros(1, 3, 2, 2)}, r"offset: expected shape \(1, 2, 2, 2\), got \(1, 3, 2, 2\)"),
        ({"offset": torch.zeros(1, 2, 2, 2).double()}, "offset: expected the dtype of input"),
        ({"offset": torch.zeros(1, 2, 2, 2, device="meta")}, "offset: expected the device of input, cpu, got meta"),
        ({"mask": torch.zeros(1, 2, 2, 2)}, r"mask: expected shape \(1, 1, 2, 2\), got \(1, 2, 2, 2\)"),
        ({"output_size": 0}, "output_size: expected one or two whole numbers of at least 1, got 0"),
    ],
)
def test_messages(changed, message: str):
    usual = {"input": torch.zeros(1, 3, 5, 5), "boxes": torch.zeros(1, 5), "offset": torch.zeros(1, 2, 2, 2)}
    with pytest.raises(ValueError, match=f"deform_roi_pool: .*{message}"):
        deform_roi_pool(**{**usual, "output_size": 2, **changed})


def test_module_stores_settings():
    input, boxes, offset, mask = arguments(torch.float32, False)
    module = DeformRoIPool((3, 2), 0.5, 2, 0.3)
    expected = deform_roi_pool(input, boxes, offset, (3, 2), 0.5, 2, 0.3, mask)
    assert module(input, boxes, offset, mask).equal(expected)
    assert repr(module) == "DeformRoIPool(output_size=(3, 2), spatial_scale=0.5, sampling_ratio=2, gamma=0.3)"


class TestContract(Contract):
    gradients = (0, 2, 3)
    linear = False
    dynamic = {1: {0: "K"}, 2: {0: "K"}, 3: {0: "K"}}  # noqa: RUF012

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        return arguments(dtype, channels_last, 5, count, (7, 9))

    def call(self, *tensors: Tensor) -> Tensor:
        input, boxes, offset, mask = tensors
        return deform_roi_pool(input, boxes, offset, (3, 2), 0.7, 2, 0.3, mask)

    @pytest.mark.slow
    def test_onnx(self):
        super().test_onnx()


class TestAdaptiveContract(TestContract):
    gradients = (0, 2)
    dynamic = {1: {0: "K"}, 2: {0: "K"}}  # noqa: RUF012

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        return arguments(dtype, channels_last, 3, count, (7, 9))[:3]

    def call(self, *tensors: Tensor) -> Tensor:
        return deform_roi_pool(*tensors, (3, 2), 0.7)


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_channels(channels_last: bool):
    input, boxes, offset, _ = arguments(torch.float32, channels_last)
    input = input[:, :0].contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    input.requires_grad_()
    output = deform_roi_pool(input, boxes, offset.requires_grad_(), tuple(offset.shape[2:]))
    output.sum().backward()
    assert output.shape == (len(boxes), 0, *offset.shape[2:])
    assert input.grad.shape == input.shape
    assert offset.grad.count_nonzero() == 0

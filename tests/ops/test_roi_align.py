"""roi_align against scalar loops, against torchvision, and against the PyTorch path."""

import math

import pytest
import torch
from contract import Contract, randn
from torch import Tensor

from visionlab.ops import RoIAlign, roi_align
from visionlab.ops.reference import roi_align as reference

SETTINGS = [(1.0, 2, True), (1.0, 2, False), (0.5, -1, True), (0.5, -1, False), (0.7, 0, True), (2.0, 3, False)]


def slow_samples(begin: float, end: float, bins: int, size: int, scale: float, ratio: int, aligned: bool):
    """For each bin its samples, and each sample as a list of (cell, weight); weights are 0 outside the map."""
    start = begin * scale - (0.5 if aligned else 0.0)
    length = end * scale - (0.5 if aligned else 0.0) - start
    if not aligned:
        length = max(length, 1.0)
    count = ratio if ratio > 0 else math.ceil(length / bins)
    result = []
    for bin in range(bins):
        samples = []
        for i in range(count):
            position = start + bin * length / bins + (i + 0.5) * length / bins / count
            if position < -1 or position > size:
                samples.append([])
                continue
            position = min(max(position, 0.0), size - 1.0)
            low = int(position)
            samples.append([(low, 1 - (position - low)), (min(low + 1, size - 1), position - low)])
        result.append(samples)
    return result


def slow_weights(input: Tensor, boxes: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool):
    """Yield (box, bin row, bin column, image, y, x, weight): the whole pooling as one sparse matrix."""
    for k, (image, x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
        rows = slow_samples(y1, y2, size[0], input.shape[2], scale, ratio, aligned)
        columns = slow_samples(x1, x2, size[1], input.shape[3], scale, ratio, aligned)
        for i, row_samples in enumerate(rows):
            for j, column_samples in enumerate(columns):
                count = max(len(row_samples) * len(column_samples), 1)
                for row_sample in row_samples:
                    for column_sample in column_samples:
                        for y, row_weight in row_sample:
                            for x, column_weight in column_sample:
                                yield k, i, j, int(image), y, x, row_weight * column_weight / count


def slow_roi_align(input: Tensor, boxes: Tensor, size: tuple[int, int], *settings) -> Tensor:
    output = torch.zeros(len(boxes), input.shape[1], *size, dtype=torch.float64)
    for k, i, j, image, y, x, weight in slow_weights(input, boxes, size, *settings):
        output[k, :, i, j] += weight * input[image, :, y, x].double()
    return output


def slow_gradient(input: Tensor, boxes: Tensor, grad: Tensor, *settings) -> Tensor:
    result = torch.zeros(input.shape, dtype=torch.float64)
    for k, i, j, image, y, x, weight in slow_weights(input, boxes, tuple(grad.shape[2:]), *settings):
        result[image, :, y, x] += weight * grad[k, :, i, j].double()
    return result


def make_boxes(count: int, batch: int = 2, size: float = 12.0, seed: int = 0, dtype=torch.float32) -> Tensor:
    """Boxes inside, across and outside the border, of all sizes, some with their sides the wrong way round."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, batch, (count, 1), generator=generator)
    centers = torch.rand(count, 2, generator=generator) * size * 1.4 - size * 0.2
    halves = torch.rand(count, 2, generator=generator) ** 2 * size * 0.6 - 0.05 * size
    return torch.cat([images, centers - halves, centers + halves], 1).to(dtype)


def make_input(channels: int = 3, dtype=torch.float32, channels_last: bool = False, size=(11, 13)) -> Tensor:
    input = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
    return input.contiguous(memory_format=torch.channels_last) if channels_last else input


class TestRoIAlign(Contract):
    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        return randn((2, 3, 5, 6), 0, dtype, channels_last), make_boxes(count, size=5, dtype=dtype)

    def call(self, *tensors: Tensor) -> Tensor:
        return roi_align(*tensors, (2, 3), 0.9, 2, True)


class TestAdaptiveRoIAlign(TestRoIAlign):
    def call(self, *tensors: Tensor) -> Tensor:
        return roi_align(*tensors, (2, 3), 1.7, -1, False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_scalar_loops(settings, dtype: torch.dtype, channels_last: bool):
    input = make_input(dtype=dtype, channels_last=channels_last).requires_grad_()
    boxes = make_boxes(12, dtype=dtype)
    output = roi_align(input, boxes, (3, 2), *settings)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-5}
    torch.testing.assert_close(output.double(), slow_roi_align(input, boxes, (3, 2), *settings), **tolerance)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    (gradient,) = torch.autograd.grad(output, input, grad)
    torch.testing.assert_close(gradient.double(), slow_gradient(input, boxes, grad, *settings), **tolerance)


@pytest.mark.parametrize("channels", [1, 4, 8, 17, 32, 49, 131])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_torchvision_for_any_number_of_channels(channels: int, channels_last: bool):
    torchvision = pytest.importorskip("torchvision")
    input = make_input(channels, channels_last=channels_last).requires_grad_()
    boxes = make_boxes(25, seed=channels)
    for settings in SETTINGS:
        expected = torchvision.ops.roi_align(input, boxes, (7, 5), *settings)
        output = roi_align(input, boxes, (7, 5), *settings)
        torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)
        grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
        gradients = [torch.autograd.grad(pooled, input, grad)[0] for pooled in (output, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_lists_integers_and_modules_as_torchvision():
    torchvision = pytest.importorskip("torchvision")
    input = make_input()
    boxes = [make_boxes(4)[:, 1:], make_boxes(0)[:, 1:]]
    torch.testing.assert_close(roi_align(input, boxes, 3), torchvision.ops.roi_align(input, boxes, 3))
    theirs, ours = torchvision.ops.RoIAlign((2, 3), 0.5, 2, True), RoIAlign((2, 3), 0.5, 2, True)
    torch.testing.assert_close(ours(input, boxes), theirs(input, boxes))
    assert repr(ours) == "RoIAlign(output_size=(2, 3), spatial_scale=0.5, sampling_ratio=2, aligned=True)"


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_plain_pytorch(settings, channels_last: bool):
    input = make_input(5, torch.float64, channels_last)
    boxes = make_boxes(150, dtype=torch.float64)
    output = roi_align(input, boxes, (3, 4), *settings)
    plain = reference.roi_align(input, boxes, 3, 4, *settings)
    torch.testing.assert_close(plain, output, rtol=0, atol=1e-12)
    assert plain.stride() == output.stride()
    arguments = (torch.randn_like(output), boxes, *input.shape, *settings, channels_last, False)
    torch.testing.assert_close(
        reference.roi_align_backward(*arguments), torch.ops.visionlab.roi_align_backward(*arguments), rtol=0, atol=1e-11
    )


def test_strides_do_not_matter():
    input, boxes = make_input(6), make_boxes(9)
    expected = roi_align(input, boxes, 3)
    wide = torch.zeros(2, 12, 22, 26)
    wide[:, ::2, ::2, ::2] = input
    assert roi_align(wide[:, ::2, ::2, ::2], boxes, 3).equal(expected)
    assert roi_align(input.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), boxes, 3).equal(expected)
    assert roi_align(input[:1].expand(2, -1, -1, -1), boxes, 3).equal(roi_align(input[:1].repeat(2, 1, 1, 1), boxes, 3))
    assert roi_align(input, boxes.T.contiguous().T, 3).equal(expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_for_any_number_of_threads(threads, channels_last: bool):
    input = make_input(70, channels_last=channels_last, size=(40, 40)).requires_grad_()
    boxes = make_boxes(300, size=40)
    grad = torch.randn(300, 70, 3, 3, generator=torch.Generator().manual_seed(3))
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        output = roi_align(input, boxes, 3, 1.0, 2, True)
        answers.append((output, *torch.autograd.grad(output, input, grad)))
    for answer in answers[1:]:
        assert all(a.equal(b) for a, b in zip(answers[0], answer, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_empty(channels_last: bool):
    input = make_input(channels_last=channels_last).requires_grad_()
    output = roi_align(input, make_boxes(0), (3, 2))
    assert output.shape == (0, 3, 3, 2)
    output.sum().backward()
    assert input.grad.count_nonzero() == 0
    assert roi_align(input[:, :0], make_boxes(4), 2).shape == (4, 0, 2, 2)
    assert roi_align(input[:0], make_boxes(0), 2).shape == (0, 3, 2, 2)
    assert roi_align(input[:0], [], 2).shape == (0, 3, 2, 2)


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
    op = reference.roi_align if plain else torch.ops.visionlab.roi_align
    with pytest.raises(RuntimeError, match=message):
        op(make_input(), boxes, 2, 2, 1.0, -1, True)


def test_huge_boxes_with_fixed_samples_are_zero_outside():
    boxes = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [0, 1e6, 1e6, 2e6, 2e6], [0, 9, 9, 3, 3]])
    assert roi_align(make_input(), boxes, 2, 1.0, 2, True)[:2].count_nonzero() == 0


@pytest.mark.parametrize(
    ("input", "boxes", "size", "message"),
    [
        (torch.zeros(3, 5, 5), torch.zeros(1, 5), 2, r"input: expected shape \(N, C, H, W\), got \(3, 5, 5\)"),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 4), 2, r"boxes: expected shape \(K, 5\).*got \(1, 4\)"),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 5), 0, "output_size: expected .* at least 1, got 0"),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 5), (1, 2, 3), "output_size: expected .*got"),
        (
            torch.zeros(1, 3, 5, 5),
            torch.zeros(1, 5).double(),
            2,
            "boxes: expected the dtype of input, torch.float32, got",
        ),
        (
            torch.zeros(1, 3, 5, 5),
            torch.zeros(1, 5, device="meta"),
            2,
            "boxes: expected the device of input, cpu, got",
        ),
        (torch.zeros(1, 3, 5, 5).long(), torch.zeros(1, 5), 2, "input: expected float16, .*got torch.int64"),
        (torch.zeros(2, 3, 5, 5), [torch.zeros(1, 4)], 2, "a list of one tensor for each of 2 images, got 1"),
        (torch.zeros(1, 3, 5, 5), [torch.zeros(1, 5)], 2, r"boxes\[0\]: expected shape \(L, 4\), got \(1, 5\)"),
        (torch.zeros(1, 3, 0, 5), torch.zeros(1, 5), 2, "input: expected pixels to pool from"),
    ],
)
def test_messages(input, boxes, size, message: str):
    with pytest.raises(ValueError, match=f"roi_align: .*{message}"):
        roi_align(input, boxes, size)


@pytest.mark.parametrize("ratio", [-1, 2])
def test_gradient_of_rows_that_threads_share(threads: None, ratio: int):
    torch.manual_seed(0)
    input = torch.randn(2, 40, 70, 30).contiguous(memory_format=torch.channels_last).requires_grad_()
    middle, side = torch.rand(90, 2) * torch.tensor([30, 70]), torch.rand(90, 2) * torch.tensor([40, 90]) - 5
    boxes = torch.cat((torch.randint(0, 2, (90, 1)), middle - side / 2, middle + side / 2), dim=1)
    grad = torch.randn(90, 40, 3, 4)
    answers = []
    for count in (1, 2, 3, 20):
        torch.set_num_threads(count)
        output = roi_align(input, boxes, (3, 4), 1.0, ratio, aligned=True)
        answers.append(torch.autograd.grad(output, input, grad)[0])
    assert all(torch.equal(answers[0], answer) for answer in answers)
    contiguous = input.detach().contiguous().requires_grad_()
    expected = torch.autograd.grad(roi_align(contiguous, boxes, (3, 4), 1.0, ratio, aligned=True), contiguous, grad)[0]
    torch.testing.assert_close(answers[0], expected)

"""deform_ps_roi_pool against scalar loops, and for hostile arguments."""

import math

import pytest
import torch
from contract import Contract, randn
from slow_bins import Bin, make_boxes, slow
from torch import Tensor

from visionlab.ops import DeformPSRoIPool, deform_ps_roi_pool
from visionlab.ops.reference import deform_ps_roi_pool as reference

BINS = (3, 2)
# group_size, output channels, classes (None: no offsets), part_size
KINDS = [
    (None, 4, 2, None),
    (None, 4, 4, (2, 3)),
    ((1, 1), 10, 1, None),
    (1, 24, 3, (4, 4)),
    (1, 4, 4, (1, 2)),
    ((2, 2), 3, 1, (5, 2)),
    (None, 4, None, None),
]


def rounded(value: float) -> float:
    return math.copysign(math.floor(abs(value) + 0.5), value)


def pair(size, default: tuple[int, int]) -> tuple[int, int]:
    return default if size is None else (size, size) if isinstance(size, int) else size


def bins_of(boxes, offset, shape, group_size, scale: float, samples: int, gamma: float):
    groups = pair(group_size, BINS)

    def bin_at(k: int, c: int, i: int, j: int) -> Bin:
        image, x1, y1, x2, y2 = boxes[k].double().tolist()
        gh, gw = i * groups[0] // BINS[0], j * groups[1] // BINS[1]
        where, dx, dy = None, 0.0, 0.0
        if offset is not None:
            kind = c // (shape[1] // (offset.shape[1] // 2))
            where = (k, 2 * kind, i * offset.shape[2] // BINS[0], j * offset.shape[3] // BINS[1])
            dx, dy = (float(offset[k, 2 * kind + plane, where[2], where[3]]) * gamma for plane in (0, 1))
        axes, lengths = [], []
        for first, last, count, at, shift in ((y1, y2, BINS[0], i, dy), (x1, x2, BINS[1], j, dx)):
            start = rounded(first) * scale - 0.5
            length = max((rounded(last) + 1) * scale - 0.5 - start, 0.1)
            begin = start + at * length / count + shift * length
            axes.append([begin + s * length / count / samples for s in range(samples)])
            lengths.append(length)
        positions = [(y, x) for y in axes[0] for x in axes[1]]
        channel = (c * groups[0] + gh) * groups[1] + gw
        return Bin(int(image), channel, positions, 0.5, True, gamma * lengths[1], gamma * lengths[0], where)

    return bin_at


def arguments(kind, dtype: torch.dtype, channels_last: bool, count: int = 7, size=(11, 13)):
    group_size, channels, classes, part_size = kind
    groups, parts = pair(group_size, BINS), pair(part_size, BINS)
    input = randn((2, channels * groups[0] * groups[1], *size), 1, dtype, channels_last)
    offset = None if classes is None else randn((count, 2 * classes, *parts), 2, dtype) * 1.5
    return input, make_boxes(count, dtype), offset, randn((count, 1, *BINS), 3, dtype)


def pool(input, boxes, offset, mask, kind, scale: float = 0.9, samples: int = 4, gamma: float = 0.2) -> Tensor:
    return deform_ps_roi_pool(input, boxes, offset, BINS, scale, kind[0], kind[3], samples, gamma, mask)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "samples", "scale"), [((11, 13), 4, 0.9), ((6, 7), 3, 0.5), ((30, 26), 2, 2.2), ((9, 8), 17, 1.0)]
)
def test_equals_scalar_loops(size, samples: int, scale: float, kind, channels_last: bool):
    input, boxes, offset, mask = arguments(kind, torch.float64, channels_last, 3 if samples > 4 else 7, size)
    leaves = [tensor.requires_grad_() for tensor in (input, offset, mask) if tensor is not None]
    output = pool(input, boxes, offset, mask, kind, scale, samples)
    grad = randn(tuple(output.shape), 4, torch.float64)
    with torch.no_grad():
        bin_at = bins_of(boxes, offset, output.shape, kind[0], scale, samples, 0.2)
        expected = slow(input, offset, mask, tuple(output.shape), bin_at, grad)
    answers = [output, *torch.autograd.grad(output, leaves, grad)]
    for answer, value in zip(answers, (value for value in expected if value is not None), strict=True):
        torch.testing.assert_close(answer, value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision(kind):
    tensors = arguments(kind, torch.float32, False, 20, (20, 21))
    answers = []
    for dtype in (torch.float32, torch.float64):
        input, boxes, offset, mask = (None if tensor is None else tensor.to(dtype) for tensor in tensors)
        leaves = [tensor.requires_grad_() for tensor in (input, offset, mask) if tensor is not None]
        output = pool(input, boxes, offset, mask, kind, 1.0)
        answers.append([output, *torch.autograd.grad(output, leaves, randn(tuple(output.shape), 4, dtype))])
    for single, double in zip(*answers, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=2e-4)


def test_corners_are_rounded_away_from_zero_and_the_last_belongs_to_the_box():
    input = torch.arange(20.0).repeat(20, 1)[None, None]  # each cell holds its column
    exact = deform_ps_roi_pool(input, torch.tensor([[0, 3.0, 3, 6, 6]]), None, 1)
    assert exact.item() == pytest.approx(2.5 + 4 * 1.5 / 4)  # samples at 2.5, 3.5, 4.5 and 5.5
    assert deform_ps_roi_pool(input, torch.tensor([[0, 2.5, 3, 6.49, 6]]), None, 1).equal(exact)
    assert deform_ps_roi_pool(input, torch.tensor([[0, 3.5, 3, 6.49, 6]]), None, 1).item() == pytest.approx(
        3.5 + 3 * 1.5 / 4
    )
    negative = deform_ps_roi_pool(input, torch.tensor([[0, -2.5, 3, 6, 6]]), None, 1)
    assert negative.equal(deform_ps_roi_pool(input, torch.tensor([[0, -3.0, 3, 6, 6]]), None, 1))


def test_samples_outside_are_left_out_of_the_mean():
    input = torch.ones(1, 1, 10, 10)
    boxes = torch.tensor([[0, -5.0, -5, 3, 3], [0, 8, 8, 20, 20], [0, 30, 30, 40, 40]])
    assert deform_ps_roi_pool(input, boxes, None, 1).flatten().tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_offsets_at_the_border_have_the_true_derivative():
    input = randn((1, 8, 9, 9), 1, torch.float64)
    boxes = torch.tensor([[0, 0.0, 2, 4, 6], [0, 5, 3, 9, 9]], dtype=torch.float64)
    offset = (randn((2, 4, 2, 2), 5, torch.float64) * 0.3).requires_grad_()
    torch.autograd.gradcheck(lambda offset: deform_ps_roi_pool(input, boxes, offset, 2), offset)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_an_offset_without_a_place_empties_its_bin(kind, value: float, plain: bool):
    input, _, offset, _ = arguments(kind, torch.float32, False)
    boxes = torch.tensor([[0, 1.0, 2, 9, 10]]).repeat(7, 1)
    offset[0] = value
    settings = (1.0, *pair(kind[0], BINS), 4, 0.1)
    op = reference.deform_ps_roi_pool if plain else torch.ops.visionlab.deform_ps_roi_pool
    output = op(input, boxes, offset, None, *BINS, *settings)
    assert output[0].count_nonzero() == 0
    assert output[1:].isfinite().all()
    op = reference.deform_ps_roi_pool_backward if plain else torch.ops.visionlab.deform_ps_roi_pool_backward
    gradients = op(torch.ones_like(output), input, boxes, offset, None, *settings, True, True, False)
    assert gradients[0].isfinite().all()
    assert gradients[1][0].count_nonzero() == 0


def test_cells_that_no_sample_lies_on_do_not_matter():
    input = torch.full((1, 1, 20, 20), torch.nan)
    input[:, :, 4:9, 4:9] = 1.0
    assert deform_ps_roi_pool(input, torch.tensor([[0, 5.0, 5, 7, 7]]), None, 1).item() == 1


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, torch.nan, 0, 1, 1], "boxes: expected finite numbers, got .* in box 2"),
        ([0, 0, 0, torch.inf, 1], "boxes: expected finite numbers, got .* in box 2"),
        ([2, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got 2.* in box 2"),
        ([-1, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got -1.* in box 2"),
    ],
)
def test_hostile_boxes(row: list[float], message: str, plain: bool):
    input, boxes, offset, _ = arguments(KINDS[0], torch.float32, False)
    boxes[2] = torch.tensor(row)
    op = reference.deform_ps_roi_pool if plain else torch.ops.visionlab.deform_ps_roi_pool
    with pytest.raises(RuntimeError, match=f"deform_ps_roi_pool: .*{message}"):
        op(input, boxes, offset, None, *BINS, 1.0, *BINS, 4, 0.1)


def test_huge_boxes_are_empty():
    boxes = torch.tensor([[0, -3e38, -3e38, 3e38, 3e38], [0, 1e30, 1e30, 2e30, 2e30]])
    assert deform_ps_roi_pool(torch.ones(1, 4, 12, 12), boxes, None, 2)[1].count_nonzero() == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": torch.zeros(3, 5, 5)}, r"input: expected shape \(N, C, H, W\), got \(3, 5, 5\)"),
        ({"input": torch.zeros(1, 7, 5, 5)}, r"input: expected a multiple of 2 \* 2 channels, got shape .1, 7"),
        ({"boxes": torch.zeros(1, 4)}, r"boxes: expected shape \(K, 5\), got \(1, 4\)"),
        ({"offset": torch.zeros(1, 2, 3, 2)}, r"offset: expected shape \(1, 2 \* classes, 2, 2\), got \(1, 2, 3, 2\)"),
        ({"offset": torch.zeros(1, 3, 2, 2)}, r"offset: expected 2 \* classes channels, .*2 output channels, got 3"),
        ({"offset": torch.zeros(1, 6, 2, 2)}, r"offset: expected 2 \* classes channels, .*2 output channels, got 6"),
        ({"offset": torch.zeros(1, 2, 2, 2).half()}, "offset: expected the dtype of input"),
        ({"mask": torch.zeros(1, 1, 2, 3)}, r"mask: expected shape \(1, 1, 2, 2\), got \(1, 1, 2, 3\)"),
        ({"sample_per_part": 0}, "sample_per_part: expected at least 1, got 0"),
        ({"group_size": 0}, "group_size: expected one or two whole numbers of at least 1, got 0"),
        ({"part_size": (1, 2, 3)}, "part_size: expected one or two whole numbers"),
    ],
)
def test_messages(changed, message: str):
    usual = {"input": torch.zeros(1, 8, 5, 5), "boxes": torch.zeros(1, 5), "offset": torch.zeros(1, 2, 2, 2)}
    with pytest.raises(ValueError, match=f"deform_ps_roi_pool: .*{message}"):
        deform_ps_roi_pool(**{**usual, "output_size": 2, **changed})


def test_module_stores_settings():
    input, boxes, offset, mask = arguments(KINDS[1], torch.float32, False)
    module = DeformPSRoIPool(BINS, 0.5, None, (2, 3), 3, 0.3)
    assert module(input, boxes, offset, mask).equal(pool(input, boxes, offset, mask, KINDS[1], 0.5, 3, 0.3))
    assert repr(module) == (
        "DeformPSRoIPool(output_size=(3, 2), spatial_scale=0.5, group_size=None, part_size=(2, 3), sample_per_part=3, "
        "gamma=0.3)"
    )


class TestContract(Contract):
    """One offset for each class of two channels; maps so large that most bins take the fast path."""

    gradients = (0, 2, 3)
    linear = False
    dynamic = {1: {0: "K"}, 2: {0: "K"}, 3: {0: "K"}}  # noqa: RUF012
    kind = KINDS[0]

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        return arguments(self.kind, dtype, channels_last, count, (9, 10))

    def call(self, *tensors: Tensor) -> Tensor:
        return pool(*tensors, self.kind, 0.8, 2, 0.21)


class TestTogetherContract(TestContract):
    """Many channels that move together."""

    kind = KINDS[2]

    @pytest.mark.slow
    def test_onnx(self):
        super().test_onnx()


class TestPlainContract(TestContract):
    """No offsets, so that boxes sample where they say; scaled so that they do not do so on cells."""

    gradients = (0, 2)
    dynamic = {1: {0: "K"}, 2: {0: "K"}}  # noqa: RUF012
    kind = KINDS[6]

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        input, boxes, _, mask = arguments(self.kind, dtype, channels_last, count, (9, 10))
        return input, boxes, mask

    def call(self, *tensors: Tensor) -> Tensor:
        input, boxes, mask = tensors
        return pool(input, boxes, None, mask, self.kind, 0.83, 3)

    @pytest.mark.slow
    def test_onnx(self):
        super().test_onnx()

"""deform_conv2d against scalar loops, against torchvision, and against what every operator must hold."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from contract import FORMATS, Contract, randn
from torch import Tensor

from visionlab.ops import DeformConv2d, deform_conv2d
from visionlab.ops.reference import deform_conv2d as reference
from visionlab.ops.register import COMPILED

ONES = ((1, 1), (0, 0), (1, 1))
GENERAL = ((2, 1), (1, 2), (1, 2))  # stride, padding, dilation


def make(
    settings: tuple = GENERAL,
    *,
    shape: tuple[int, ...] = (2, 8, 6, 7),
    outs: int = 6,
    kernel: tuple[int, int] = (3, 2),
    groups: int = 2,
    offset_groups: int = 2,
    modulated: bool = True,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    spread: float = 1.7,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """Return input, offset, weight, bias and, where modulated, mask; samples lie inside, across and outside the border,
    none next to a cell's border."""
    stride, padding, dilation = settings
    size = [(shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    planes = offset_groups * kernel[0] * kernel[1]
    offset = randn((shape[0], 2 * planes, *size), seed + 1, torch.float64) * spread
    offset = offset.floor() + 0.1 + 0.8 * (offset - offset.floor())
    tensors = (
        randn(shape, seed, dtype, channels_last),
        offset.to(dtype),
        randn((outs, shape[1] // groups, *kernel), seed + 2, dtype),
        randn((outs,), seed + 3, dtype),
    )
    return (*tensors, randn((shape[0], planes, *size), seed + 4, dtype).sigmoid()) if modulated else tensors


def slow_taps(tensors: tuple[Tensor, ...], settings: tuple):
    """Yield (image, pixel row, pixel column, output channel, input channel, tap, y, x, plane): the loops."""
    input, offset, weight = tensors[:3]
    (stride, padding, dilation), (kernel_height, kernel_width) = settings, weight.shape[2:]
    groups = input.shape[1] // weight.shape[1]
    offset_groups = offset.shape[1] // (2 * kernel_height * kernel_width)
    for n, i, j in product(range(len(input)), range(offset.shape[2]), range(offset.shape[3])):
        for c, p, q in product(range(input.shape[1]), range(kernel_height), range(kernel_width)):
            plane = c // (input.shape[1] // offset_groups) * kernel_height * kernel_width + p * kernel_width + q
            y = i * stride[0] - padding[0] + p * dilation[0] + offset[n, 2 * plane, i, j].item()
            x = j * stride[1] - padding[1] + q * dilation[1] + offset[n, 2 * plane + 1, i, j].item()
            group = c // weight.shape[1]
            for o in range(group * len(weight) // groups, (group + 1) * len(weight) // groups):
                yield n, i, j, o, c, (p, q), y, x, plane


def slow_corners(input: Tensor, n: int, c: int, y: float, x: float):
    """Yield (row, column, weight, derivative by y, derivative by x) of the cells around a sample."""
    if not (math.isfinite(y) and math.isfinite(x)):
        return
    for row, column in product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        if 0 <= row < input.shape[2] and 0 <= column < input.shape[3]:
            down, right = 1 - abs(y - row), 1 - abs(x - column)
            yield row, column, down * right, (1 if row > y else -1) * right, (1 if column > x else -1) * down


def slow_gradients(tensors: tuple[Tensor, ...], settings: tuple, grad: Tensor) -> list[Tensor]:
    """Return the answer and the gradients of all tensors, in float64."""
    tensors = tuple(tensor.double().numpy() for tensor in tensors)  # an element of a tensor costs microseconds
    input, offset, weight, bias, *masks = tensors
    grad = grad.double().numpy()
    mask = masks[0] if masks else np.ones((len(input), offset.shape[1] // 2, *offset.shape[2:]))
    output = np.zeros(grad.shape) + bias[:, None, None]
    grads = [np.zeros(tensor.shape) for tensor in (input, offset, weight, bias, mask)]
    grads[3] = grad.sum((0, 2, 3))
    for n, i, j, o, c, (p, q), y, x, plane in slow_taps(tensors, settings):
        inner = c % weight.shape[1]
        w, m, g = weight[o, inner, p, q], mask[n, plane, i, j], grad[n, o, i, j]
        for row, column, share, by_y, by_x in slow_corners(input, n, c, y, x):
            value = input[n, c, row, column]
            output[n, o, i, j] += w * m * share * value
            grads[0][n, c, row, column] += g * w * m * share
            grads[1][n, 2 * plane, i, j] += g * w * m * by_y * value
            grads[1][n, 2 * plane + 1, i, j] += g * w * m * by_x * value
            grads[2][o, inner, p, q] += g * m * share * value
            grads[4][n, plane, i, j] += g * w * share * value
    return [torch.from_numpy(array) for array in (output, *grads[: len(tensors)])]


def call(tensors: tuple[Tensor, ...], settings: tuple) -> Tensor:
    input, offset, weight, bias, *mask = tensors
    return deform_conv2d(input, offset, weight, bias, *settings, *mask)


def run(tensors: tuple[Tensor, ...], settings: tuple, grad: Tensor | None = None, function=call) -> list[Tensor]:
    """Return the answer and the gradients of all tensors."""
    tensors = tuple(tensor.detach().requires_grad_() for tensor in tensors)
    output = function(tensors, settings)
    grad = randn(output.shape, 99, output.dtype) if grad is None else grad
    return [output.detach(), *torch.autograd.grad(output, tensors, grad)]


class TestModulated(Contract):
    gradients = (0, 1, 2, 3, 4)
    linear = False
    fused = True
    dynamic = {i: {0: "N"} for i in (0, 1, 4)}  # noqa: RUF012
    batched = (0, 1, 4)

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        tensors = make(shape=(count, 4, 4, 5), outs=4, kernel=(2, 2), dtype=dtype, channels_last=channels_last)
        return tensors

    def call(self, *tensors: Tensor) -> Tensor:
        return call(tensors, GENERAL)


class TestPlain(Contract):
    gradients = (0, 1, 2)
    linear = False
    fused = True
    dynamic = {i: {0: "N"} for i in (0, 1)}  # noqa: RUF012
    batched = (0, 1)

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        tensors = make(
            ONES, shape=(count, 3, 4, 4), outs=2, groups=1, offset_groups=1, dtype=dtype, channels_last=channels_last
        )
        return tensors[:3]

    def call(self, *tensors: Tensor) -> Tensor:
        return deform_conv2d(*tensors)

    @pytest.mark.slow
    def test_onnx(self):
        super().test_onnx()


@pytest.mark.parametrize("channels_last", FORMATS)
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(
    ("settings", "groups", "offset_groups"), [(ONES, 1, 1), (GENERAL, 2, 2), (GENERAL, 1, 4), (GENERAL, 4, 2)]
)
def test_equals_scalar_loops(settings, groups: int, offset_groups: int, modulated: bool, channels_last: bool):
    tensors = make(
        settings,
        shape=(2, 4, 5, 4),
        outs=4,
        groups=groups,
        offset_groups=offset_groups,
        modulated=modulated,
        channels_last=channels_last,
        dtype=torch.float64,
    )
    output = call(tensors, settings)
    grad = randn(output.shape, 5, torch.float64)
    expected = slow_gradients(tensors, settings, grad)
    for ours, slow in zip(run(tensors, settings, grad), expected, strict=True):
        torch.testing.assert_close(ours, slow, rtol=0, atol=1e-12)
    narrow = tuple(tensor.float() for tensor in tensors)
    for ours, slow in zip(run(narrow, settings, grad.float()), expected, strict=True):
        torch.testing.assert_close(ours.double(), slow, rtol=1e-4, atol=1e-4)


# Channels that fill registers or do not, that fill tiles or do not; maps of one tile and of several.
SHAPES = [
    ((1, 1, 3, 3), 1, 1, 1),
    ((2, 7, 9, 8), 5, 1, 1),
    ((3, 33, 10, 11), 17, 1, 3),
    ((1, 66, 17, 9), 34, 2, 1),
    ((2, 130, 8, 9), 70, 1, 2),
    ((1, 300, 12, 12), 20, 1, 1),
    ((2, 24, 9, 9), 24, 24, 24),
    ((1, 96, 40, 33), 48, 3, 6),
]


@pytest.mark.parametrize("channels_last", FORMATS)
@pytest.mark.parametrize("weight_last", FORMATS)
@pytest.mark.parametrize(("shape", "outs", "groups", "offset_groups"), SHAPES)
def test_equals_torchvision(shape, outs: int, groups: int, offset_groups: int, weight_last: bool, channels_last: bool):
    ops = pytest.importorskip("torchvision").ops
    for case, settings in enumerate([GENERAL, ((1, 1), (1, 1), (1, 1))]):
        tensors = list(
            make(
                settings,
                shape=shape,
                outs=outs,
                kernel=(3, 3),
                groups=groups,
                offset_groups=offset_groups,
                modulated=case == 0,
                channels_last=channels_last,
            )
        )
        if case == 1:
            tensors[1].zero_()  # on the cells, and on the line where the map ends
        if weight_last:
            for i in (1, 2):
                tensors[i] = tensors[i].contiguous(memory_format=torch.channels_last)
        theirs = run(tensors, settings, function=lambda t, s: ops.deform_conv2d(*t[:4], *s, *t[4:]))
        for ours, expected in zip(run(tensors, settings), theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_pieces_of_a_large_map_make_one_answer():
    """A contiguous map is copied piece by piece: some images, or some channels of one."""
    for shape in ((5, 16, 150, 150), (2, 40, 260, 260)):
        tensors = make(ONES, shape=shape, outs=4, kernel=(1, 2), groups=2, offset_groups=4)
        last = (tensors[0].contiguous(memory_format=torch.channels_last), *tensors[1:])
        for ours, expected in zip(run(tensors, ONES), run(last, ONES), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e10])
def test_samples_nowhere_are_zero(value: float, plain: bool):
    tensors = make(offset_groups=1)
    input, offset, weight, bias, mask = tensors
    offset[:, 4] = value
    silent = mask.clone()
    silent[:, 2] = 0
    near = offset.clone()
    near[:, 4] = 0.5
    op = reference.deform_conv2d if plain else torch.ops.visionlab.deform_conv2d.default
    settings = [list(pair) for pair in GENERAL]
    torch.testing.assert_close(
        op(input, offset, weight, mask, bias, *settings), op(input, near, weight, silent, bias, *settings)
    )
    backward = reference.deform_conv2d_backward if plain else torch.ops.visionlab.deform_conv2d_backward.default
    grad = torch.ones_like(op(input, offset, weight, mask, bias, *settings))
    wanted = (True, True, True, False)
    gradients = backward(grad, input, offset, weight, mask, *settings, *wanted)
    expected = backward(grad, input, near, weight, silent, *settings, *wanted)
    for i in (0, 2):
        torch.testing.assert_close(gradients[i], expected[i])
    assert gradients[1][:, 4:6].count_nonzero() == 0
    assert gradients[3][:, 2].count_nonzero() == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_values_outside_a_sample_do_not_reach_it():
    input, offset, weight, *_ = make(ONES, modulated=False, groups=1, offset_groups=1, spread=0.0)
    expected = deform_conv2d(input, offset, weight)
    input[:, :, 0, 0] = torch.nan
    changed = deform_conv2d(input, offset, weight)
    assert changed[:, :, 0, 0].isnan().all()
    assert torch.equal(changed[:, :, 1:], expected[:, :, 1:])


def test_only_what_is_asked_for_is_computed():
    input, offset, weight, _, mask = make()
    output = call(make(), GENERAL)
    settings = [list(pair) for pair in GENERAL]
    op = torch.ops.visionlab.deform_conv2d_backward.default
    everything = op(torch.ones_like(output), input, offset, weight, mask, *settings, True, True, True, False)
    for wanted in product((False, True), repeat=3):
        some = op(torch.ones_like(output), input, offset, weight, mask, *settings, *wanted, False)
        for gradient, whole, flag in zip(some, everything, (*wanted, wanted[1]), strict=True):
            assert torch.equal(gradient, whole) if flag else gradient.shape == (0,)


@pytest.mark.parametrize("channels_last", FORMATS)
def test_same_bits_for_any_number_of_threads_on_several_tiles(threads, channels_last: bool):
    settings = ((1, 1), (1, 1), (1, 1))
    tensors = make(settings, shape=(2, 96, 30, 29), outs=40, kernel=(3, 3), channels_last=channels_last)
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(run(tensors, settings))
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], answer, strict=True))


@pytest.mark.parametrize("channels_last", FORMATS)
def test_no_channels(channels_last: bool):
    for shape, outs in (((2, 0, 6, 7), 4), ((2, 4, 6, 7), 0)):
        tensors = make(shape=shape, outs=outs, groups=1, offset_groups=1, channels_last=channels_last)
        output, *gradients = run(tensors, GENERAL)
        assert output.shape[:2] == (2, outs)
        assert torch.equal(output, tensors[3][:, None, None].expand(output.shape))
        assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in tensors]
        assert all(gradient.count_nonzero() == 0 for gradient in (*gradients[:3], gradients[4]))


@pytest.mark.skipif(not COMPILED, reason="installed without the compiled operators")
def test_memory_does_not_grow_with_the_map():
    """The plain path needs 9 times the map; the kernel no more than its tiles."""
    resource = pytest.importorskip("resource")
    settings = ((1, 1), (1, 1), (1, 1))
    tensors = make(
        settings, shape=(1, 32, 500, 500), outs=4, kernel=(3, 3), groups=1, offset_groups=1, channels_last=True
    )
    call(tuple(tensor[:, :, :30, :30] if i in (0, 1, 4) else tensor for i, tensor in enumerate(tensors)), settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = call(tensors, settings)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < output.numel() * 4 + (32 << 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(8, 6, 7)}, r"input: expected shape \(N, C, H, W\), got \(8, 6, 7\)"),
        ({"weight": torch.zeros(6, 4, 3)}, r"weight: expected shape \(O, C / groups, .*got \(6, 4, 3\)"),
        ({"weight": torch.zeros(6, 3, 3, 2)}, "weight: expected a divisor of input's 8 channels .*got 3"),
        ({"weight": torch.zeros(5, 4, 3, 2)}, "weight: expected a multiple of its 2 groups .*got 5"),
        ({"weight": torch.zeros(6, 4, 0, 2)}, "weight: expected at least one tap"),
        ({"weight": torch.zeros(6, 4, 20, 2)}, r"input: expected a map as large as the kernel reaches, got \(6, 7\)"),
        ({"offset": torch.zeros(2, 23, 3, 9)}, "offset: expected 12 planes for each of a divisor .*got 23"),
        ({"offset": torch.zeros(2, 36, 3, 9)}, "offset: expected 12 planes for each of a divisor .*got 36"),
        ({"offset": torch.zeros(2, 0, 3, 9)}, "offset: expected 12 planes for each of a divisor .*got 0"),
        ({"offset": torch.zeros(2, 24, 3, 8)}, r"offset: expected shape \(2, G \* 12, 3, 9\), got \(2, 24, 3, 8\)"),
        ({"offset": torch.zeros(1, 24, 3, 9)}, r"offset: expected shape \(2, G \* 12, 3, 9\), got \(1, 24, 3, 9\)"),
        ({"mask": torch.zeros(2, 6, 3, 9)}, r"mask: expected shape \(2, 12, 3, 9\), got \(2, 6, 3, 9\)"),
        ({"bias": torch.zeros(5)}, r"bias: expected shape \(6,\), got \(5,\)"),
        ({"bias": torch.zeros(6).double()}, "bias: expected the dtype of input, torch.float32, got torch.float64"),
        ({"offset": torch.zeros(2, 24, 3, 9, device="meta")}, "offset: expected the device of input, cpu, got meta"),
        ({"input": torch.zeros(2, 8, 6, 7).long()}, "input: expected float16, .*got torch.int64"),
        ({"mask": "none"}, "mask: expected a tensor, got str"),
        ({"stride": 0}, "stride: expected one or two whole numbers of at least 1, got 0"),
        ({"padding": (1, -1)}, r"padding: expected one or two whole numbers of at least 0, got \(1, -1\)"),
        ({"dilation": (1, 1, 1)}, r"dilation: expected one or two whole numbers of at least 1, got \(1, 1, 1\)"),
    ],
)
def test_messages(changes: dict, message: str):
    arguments = dict(zip(("input", "offset", "weight", "bias", "mask"), make(), strict=True))
    arguments |= dict(zip(("stride", "padding", "dilation"), GENERAL, strict=True))
    deform_conv2d(**arguments)
    with pytest.raises(ValueError, match=f"deform_conv2d: {message}"):
        deform_conv2d(**{**arguments, **changes})


def test_module_is_torchvisions():
    ops = pytest.importorskip("torchvision").ops
    arguments = (8, 6, (3, 2), *GENERAL, 2)
    for bias in (True, False):
        torch.manual_seed(0)
        theirs = ops.DeformConv2d(*arguments, bias)
        torch.manual_seed(0)
        ours = DeformConv2d(*arguments, bias)
        state, expected = ours.state_dict(), theirs.state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], expected[name]) for name in state)
        assert repr(ours) == repr(theirs)
        input, offset, *_, mask = make()
        torch.testing.assert_close(ours(input, offset, mask), theirs(input, offset, mask))
    with pytest.raises(ValueError, match="DeformConv2d: out_channels: expected a multiple of groups, 2, got 5"):
        DeformConv2d(8, 5, 3, groups=2)

"""roi_pool against scalar loops, against torchvision, and with hostile input."""

import math

import pytest
import torch
from contract import FORMATS, Contract, randn
from torch import Tensor

from visionlab.ops import RoIPool, roi_pool
from visionlab.ops.reference import roi_pool as reference

LOWEST = torch.finfo(torch.float32).min


def make_boxes(count: int, batch: int = 2, size: float = 12.0, seed: int = 0, dtype=torch.float32) -> Tensor:
    """Boxes inside, across and outside the border, of all sizes, some with their sides the wrong way round."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, batch, (count, 1), generator=generator)
    centers = torch.rand(count, 2, generator=generator) * size * 1.4 - size * 0.2
    halves = torch.rand(count, 2, generator=generator) ** 2 * size * 0.6 - 0.05 * size
    return torch.cat([images, centers - halves, centers + halves], 1).to(dtype)


def slow_round(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def slow_cells(begin: float, end: float, scale: float, bins: int, size: int) -> list[range]:
    first, last = slow_round(begin * scale), slow_round(end * scale)
    bin_size = max(last - first + 1, 1) / bins
    edges = [(first + math.floor(i * bin_size), first + math.ceil((i + 1) * bin_size)) for i in range(bins)]
    return [range(min(max(a, 0), size), min(max(b, 0), size)) for a, b in edges]


def slow_roi_pool(input: Tensor, boxes: Tensor, size: tuple[int, int], scale: float) -> tuple[Tensor, Tensor]:
    output = torch.zeros(len(boxes), input.shape[1], *size, dtype=torch.float64)
    argmax = torch.full(output.shape, -1, dtype=torch.int64)
    for k, (image, x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
        rows = slow_cells(y1, y2, scale, size[0], input.shape[2])
        columns = slow_cells(x1, x2, scale, size[1], input.shape[3])
        for c in range(input.shape[1]):
            plane = input[int(image), c].double().tolist()
            for i, ys in enumerate(rows):
                for j, xs in enumerate(columns):
                    if not (ys and xs):
                        continue
                    best, cell = LOWEST, -1
                    for y in ys:
                        for x in xs:
                            if plane[y][x] > best:
                                best, cell = plane[y][x], y * input.shape[3] + x
                    output[k, c, i, j], argmax[k, c, i, j] = best, cell
    return output, argmax


class TestRoIPool(Contract):
    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        return randn((2, 5, 9, 11), 1, dtype, channels_last), make_boxes(count, size=10, seed=3, dtype=dtype)

    def call(self, *tensors: Tensor) -> Tensor:
        return roi_pool(*tensors, (3, 2), 0.9)


@pytest.mark.parametrize("channels_last", FORMATS)
@pytest.mark.parametrize("channels", [1, 16, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_scalar_loops(ties: bool, dtype: torch.dtype, channels: int, channels_last: bool):
    input = randn((2, channels, 14, 13), 1, dtype, channels_last)
    if ties:
        input = input.round()
    boxes = make_boxes(12, dtype=dtype)
    for size, scale in (((3, 2), 1.0), ((1, 1), 1.3), ((7, 5), 0.5)):
        output, argmax = torch.ops.visionlab.roi_pool(input, boxes, *size, scale, True)
        expected, cells = slow_roi_pool(input, boxes, size, scale)
        assert output.double().equal(expected)
        assert argmax.long().equal(cells)
        assert torch.ops.visionlab.roi_pool(input, boxes, *size, scale, False)[0].equal(output)


@pytest.mark.parametrize("channels_last", FORMATS)
@pytest.mark.parametrize("size", [(7, 7), (3, 5), (1, 1)])
def test_equals_torchvision(size: tuple[int, int], channels_last: bool):
    torchvision = pytest.importorskip("torchvision")
    input = randn((2, 37, 60, 50), 1, channels_last=channels_last).requires_grad_()
    boxes = make_boxes(80, size=55)
    output, expected = roi_pool(input, boxes, size, 1.0), torchvision.ops.roi_pool(input, boxes, size, 1.0)
    assert output.equal(expected)
    grad = randn(tuple(output.shape), 2)
    gradients = [torch.autograd.grad(pooled, input, grad)[0] for pooled in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", FORMATS)
def test_nan_and_infinity_in_the_map_as_torchvision(channels_last: bool):
    torchvision = pytest.importorskip("torchvision")
    input = randn((2, 18, 20, 20), 1, channels_last=channels_last)
    input[torch.rand(input.shape, generator=torch.Generator().manual_seed(2)) < 0.3] = torch.nan
    input[0, :4], input[0, 4, 3, 3], input[1, 5, 4:9] = -torch.inf, torch.inf, torch.nan
    boxes = make_boxes(60, size=19)
    output, argmax = torch.ops.visionlab.roi_pool(input, boxes, 3, 3, 1.0, True)
    expected = torch.ops.torchvision.roi_pool(input, boxes, 1.0, 3, 3)
    assert torchvision.__version__
    assert output.equal(expected[0])
    assert argmax.equal(expected[1])


def test_lists_and_modules_as_torchvision():
    torchvision = pytest.importorskip("torchvision")
    input, boxes = randn((2, 3, 9, 9), 1), [make_boxes(4)[:, 1:], make_boxes(0)[:, 1:]]
    assert roi_pool(input, boxes, 3).equal(torchvision.ops.roi_pool(input, boxes, 3))
    ours = RoIPool((2, 3), 0.5)
    assert ours(input, boxes).equal(torchvision.ops.RoIPool((2, 3), 0.5)(input, boxes))
    assert repr(ours) == "RoIPool(output_size=(2, 3), spatial_scale=0.5)"


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, torch.nan, 0, 1, 1], "roi_pool: boxes: expected finite numbers, got .* in box 2"),
        ([0, 0, 0, torch.inf, 1], "roi_pool: boxes: expected finite numbers, got .* in box 2"),
        ([2, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got 2.* in box 2"),
        ([-1, 0, 0, 1, 1], r"boxes: expected image indices in \[0, 2\), got -1.* in box 2"),
    ],
)
def test_hostile_boxes(row: list[float], message: str, plain: bool):
    boxes = make_boxes(4)
    boxes[2] = torch.tensor(row)
    op = reference.roi_pool if plain else torch.ops.visionlab.roi_pool
    with pytest.raises(RuntimeError, match=message):
        op(randn((2, 3, 5, 5), 1), boxes, 2, 2, 1.0, True)


def test_huge_boxes():
    input = randn((1, 3, 6, 7), 1)
    boxes = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [0, 1e9, 1e9, 2e9, 2e9], [0, 5, 5, -1e38, -1e38]])
    output = roi_pool(input, boxes, 1)
    assert output[0, :, 0, 0].equal(input.amax((0, 2, 3)))
    assert output[1].count_nonzero() == 0
    assert output[2, :, 0, 0].equal(input[0, :, 5, 5])


def test_argmax_outside_the_map_is_ignored():
    argmax = torch.tensor([10**9, -7, 25, 3], dtype=torch.int32).view(1, 1, 2, 2)
    boxes = torch.tensor([[0.0, 0, 0, 4, 4]])
    for channels_last in FORMATS:
        grad = torch.ops.visionlab.roi_pool_backward(
            torch.ones(1, 1, 2, 2), argmax, boxes, 1, 1, 5, 5, 1.0, channels_last, False
        )
        assert grad.flatten().nonzero().tolist() == [[3]]


@pytest.mark.parametrize(
    ("input", "boxes", "size", "message"),
    [
        (torch.zeros(3, 5, 5), torch.zeros(1, 5), 2, r"input: expected shape \(N, C, H, W\), got \(3, 5, 5\)"),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 4), 2, r"boxes: expected shape \(K, 5\).*got \(1, 4\)"),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 5), 0, "output_size: expected .* at least 1, got 0"),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 5).double(), 2, "boxes: expected the dtype of input"),
        (torch.zeros(2, 3, 5, 5), [torch.zeros(1, 4)], 2, "a list of one tensor for each of 2 images, got 1"),
    ],
)
def test_messages(input, boxes, size, message: str):
    with pytest.raises(ValueError, match=f"roi_pool: .*{message}"):
        roi_pool(input, boxes, size)

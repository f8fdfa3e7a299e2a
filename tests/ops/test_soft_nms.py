"""soft_nms against scalar loops, against an example worked by hand, and against the PyTorch path."""

import math

import pytest
import torch
from torch import Tensor

from visionlab.ops import nms, soft_nms
from visionlab.ops.reference import soft_nms as reference

METHODS = ["linear", "gaussian"]


def slow_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method):
    corners = boxes.double().tolist()
    alive = {i: score for i, score in enumerate(scores.double().tolist()) if score >= score_threshold}
    keep, lowered = [], []
    while alive:
        best = min(alive, key=lambda i: (-alive[i], i))
        keep.append(best)
        lowered.append(alive.pop(best))
        for i in list(alive):
            iou = slow_iou(corners[best], corners[i])
            if method == "gaussian":
                alive[i] *= math.exp(-iou * iou / sigma)
            elif iou >= iou_threshold:
                alive[i] *= 1 - iou
            if alive[i] < score_threshold:
                del alive[i]
    return keep, lowered


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


def make_boxes(count: int, seed: int, spread: float = 60.0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * spread
    sizes = torch.rand(count, 2, generator=generator) * 20 + 0.25
    return torch.cat([corners, corners + sizes], 1).to(dtype), torch.rand(count, generator=generator).to(dtype)


# Three boxes of area 100 in a row, each shifted by 5 along x from the one before: neighbors have 50 in common of 150,
# an IoU of 1/3, the first and the last touch.
ROW = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]])


def test_linear_by_hand():
    # 0.9 is taken; 0.8 becomes 0.8 * 2/3 = 0.533..., 0.7 stays; 0.7 is taken; 0.533 becomes 0.355...
    keep, scores = soft_nms(ROW, torch.tensor([0.9, 0.8, 0.7]), 0.3)
    assert keep.tolist() == [0, 2, 1]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.8 * 4 / 9]))


def test_gaussian_by_hand():
    # exp(-(1/3)^2 / 0.5) = exp(-2/9) = 0.8007...: 0.8 becomes 0.6406, below 0.7, and then 0.5129.
    keep, scores = soft_nms(ROW, torch.tensor([0.9, 0.8, 0.7]), sigma=0.5, method="gaussian")
    assert keep.tolist() == [0, 2, 1]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.8 * math.exp(-4 / 9)]))


def test_boxes_of_little_score_are_left_out():
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert soft_nms(ROW, scores, score_threshold=0.36)[0].tolist() == [0, 2]
    assert soft_nms(ROW, scores, score_threshold=1.0)[0].tolist() == []
    twice = torch.cat([ROW[:1], ROW[:1]])
    assert soft_nms(twice, scores[:2], score_threshold=1e-9)[0].tolist() == [0]
    assert soft_nms(twice, scores[:2], score_threshold=0.0)[1].tolist() == [scores[0].item(), 0.0]


def test_linear_threshold_is_inclusive():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.5, 0.5])
    assert soft_nms(boxes, scores, 0.5)[1].tolist() == [0.5, 0.25]
    assert soft_nms(boxes, scores, 0.5 + 1e-9)[1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "spread"), [(1, 9.0), (15, 9.0), (16, 30.0), (17, 30.0), (90, 60.0), (300, 100.0)])
def test_equals_scalar_loops(method: str, count: int, spread: float):
    boxes, scores = make_boxes(count, count, spread)
    for settings in [(0.3, 0.5, 0.001), (0.0, 0.1, 0.2), (0.7, 2.0, 0.0)]:
        keep, lowered = soft_nms(boxes, scores, *settings, method)
        expected_keep, expected = slow_soft_nms(boxes, scores, *settings, method)
        assert keep.dtype == torch.int64
        assert keep.tolist() == expected_keep
        torch.testing.assert_close(lowered, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes(method: str, dtype: torch.dtype):
    boxes, scores = make_boxes(60, 3, dtype=dtype)
    keep, lowered = soft_nms(boxes, scores, method=method)
    assert lowered.dtype == dtype
    again, wide = soft_nms(boxes.float(), scores.float(), method=method)
    assert keep.equal(again)
    assert lowered.equal(wide.to(dtype))
    _, expected = slow_soft_nms(boxes, scores, 0.3, 0.5, 0.001, method)
    torch.testing.assert_close(wide.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 5, 200])
def test_equals_plain_pytorch(method: str, count: int):
    boxes, scores = make_boxes(count, 7)
    settings = (0.3, 0.5, 0.01, METHODS.index(method))
    for ours, plain in zip(
        soft_nms(boxes, scores, 0.3, 0.5, 0.01, method), reference.soft_nms(boxes, scores, *settings), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)


def test_equal_scores_take_the_first():
    boxes = torch.arange(40.0)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    assert soft_nms(boxes, torch.full((40,), 0.5))[0].tolist() == list(range(40))


def test_is_nms_where_overlaps_are_total():
    boxes, _ = make_boxes(12, 5, spread=9000.0, dtype=torch.float32)
    boxes = boxes.repeat(3, 1)
    scores = torch.rand(36, generator=torch.Generator().manual_seed(0))
    assert soft_nms(boxes, scores)[0].equal(nms(boxes, scores, 0.5))


def test_boxes_without_area():
    boxes = torch.zeros(3, 4)
    for method in METHODS:
        keep, scores = soft_nms(boxes, torch.tensor([0.1, 0.3, 0.2]), method=method)
        assert keep.tolist() == [1, 2, 0]
        assert scores.tolist() == torch.tensor([0.3, 0.2, 0.1]).tolist()


def test_huge_boxes_and_scores():
    boxes = torch.tensor([[-3e38, -3e38, 3e38, 3e38], [0, 0, 1, 1], [-1e20, 0, 1e20, 1e20]])
    for method in METHODS:
        keep, scores = soft_nms(boxes, torch.tensor([3e38, -1.0, 1e-45]), score_threshold=0, method=method)
        assert keep.tolist()[0] == 0
        assert not scores.isnan().any()


def test_a_sigma_that_float32_does_not_have():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert soft_nms(boxes, scores, sigma=1e-60, method="gaussian")[0].tolist() == [0, 2]
    assert soft_nms(boxes, scores, sigma=1e60, method="gaussian")[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_strides_and_threads_do_not_matter(threads, method: str):
    boxes, scores = make_boxes(400, 8, dtype=torch.float32)
    wide = torch.zeros(400, 8)
    wide[:, ::2] = boxes
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(soft_nms(wide[:, ::2], torch.stack([scores, scores], 1)[:, 0], method=method))
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], answer, strict=True))


def test_many_boxes_in_parallel_blocks(threads):
    boxes, scores = make_boxes(40000, 9, spread=3000.0, dtype=torch.float32)
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(soft_nms(boxes, scores, score_threshold=0.99))
    assert 100 < len(answers[0][0]) < 1000
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], answer, strict=True))


def same_at_every_level() -> list[Tensor]:
    """Answers that test_levels.py compares bit for bit."""
    answers: list[Tensor] = []
    for dtype in (torch.float32, torch.float64):
        for method in METHODS:
            answers += soft_nms(*make_boxes(300, 1, dtype=dtype), method=method)
    return answers


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_what_is_not_finite(plain: bool, value: float):
    def call(boxes: Tensor, scores: Tensor) -> None:
        reference.soft_nms(boxes, scores, 0.3, 0.5, 0.001, 0) if plain else soft_nms(boxes, scores)

    boxes, scores = make_boxes(20, 1)
    bad = boxes.clone()
    bad[7, 2] = value
    with pytest.raises(RuntimeError, match=r"soft_nms: boxes: expected finite numbers, got .* box 7"):
        call(bad, scores)
    scores[3] = value
    with pytest.raises(RuntimeError, match=r"soft_nms: scores: expected finite numbers, got .* in box 3"):
        call(boxes, scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 5), torch.zeros(3)), r"soft_nms: boxes: expected shape \(N, 4\), got \(3, 5\)"),
        ((torch.zeros(3, 4), torch.zeros(4)), r"soft_nms: scores: expected shape \(3,\), got \(4,\)"),
        ((torch.zeros(3, 4).int(), torch.zeros(3)), "soft_nms: boxes: expected float.*got torch.int32"),
        ((torch.zeros(3, 4), torch.zeros(3).double()), "scores: expected the dtype of boxes.*got torch.float64"),
        ((torch.zeros(3, 4), torch.zeros(3), 0.3, 0.0), "sigma: expected a number above 0, got 0.0"),
        ((torch.zeros(3, 4), torch.zeros(3), 0.3, math.nan), "sigma: expected a number above 0, got nan"),
        (
            (torch.zeros(3, 4), torch.zeros(3), 0.3, 0.5, 0.1, "hard"),
            "method: expected one of linear, gaussian, got 'hard'",
        ),
    ],
)
def test_messages(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        soft_nms(*arguments)


@pytest.mark.parametrize("method", [0, 1])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(method: int, needs_grad: bool):
    boxes, scores = make_boxes(30, 2)
    arguments = (boxes.requires_grad_(needs_grad), scores, 0.3, 0.5, 0.01, method)
    torch.library.opcheck(torch.ops.visionlab.soft_nms.default, arguments)


def test_compiles_in_one_graph_and_exports():
    class Module(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
            keep, lowered = soft_nms(boxes, scores)
            return boxes[keep] * lowered[:, None]

    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")
    count = torch.export.Dim("count", min=2, max=1000)
    example = make_boxes(20, 3)
    exported = torch.export.export(Module(), example, dynamic_shapes=({0: count}, {0: count})).module()
    for boxes, scores in (make_boxes(30, 4), make_boxes(50, 5)):
        assert compiled(boxes, scores).equal(Module()(boxes, scores))
        assert exported(boxes, scores).equal(Module()(boxes, scores))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 31, 1024, 3000])
def test_cuda_equals_cpu(method: str, count: int):
    for dtype in (torch.float32, torch.float64, torch.float16):
        boxes, scores = make_boxes(count, 1, spread=300.0, dtype=dtype)
        expected = soft_nms(boxes, scores, method=method)
        for ours, theirs in zip(soft_nms(boxes.cuda(), scores.cuda(), method=method), expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_leaves_out_what_is_not_finite():
    boxes, scores = make_boxes(50, 1)
    boxes[3, 1], boxes[9, 2], scores[11] = torch.nan, torch.inf, torch.nan
    good = [i for i in range(50) if i not in (3, 9, 11)]
    keep, lowered = soft_nms(boxes.cuda(), scores.cuda())
    expected_keep, expected = soft_nms(boxes[good], scores[good])
    assert keep.tolist() == [good[i] for i in expected_keep.tolist()]
    torch.testing.assert_close(lowered.cpu(), expected)

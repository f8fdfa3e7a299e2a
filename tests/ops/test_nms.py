"""nms and batched_nms against scalar loops, against torchvision, and against the PyTorch path."""

import pytest
import torch
from torch import Tensor

from visionlab.ops import batched_nms, nms, nms_padded
from visionlab.ops.reference import nms as reference


def slow_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> list[int]:
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i))
    corners, kept = boxes.double().tolist(), []
    for i in order:
        if not any(idxs[i] == idxs[j] and slow_iou(corners[i], corners[j]) > iou_threshold for j in kept):
            kept.append(i)
    return kept


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


def make_boxes(count: int, seed: int, spread: float = 60.0, dtype: torch.dtype = torch.float32):
    """Boxes on a grid of quarters, so that overlaps are exact in any dtype, and scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(count, 2, generator=generator) * spread * 4).round() / 4
    sizes = (torch.rand(count, 2, generator=generator) * 80).round() / 4 + 0.25
    scores = (torch.rand(count, generator=generator) * 20).round() / 20
    return torch.cat([corners, corners + sizes], 1).to(dtype), scores.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.5, 1.0])
def test_equals_scalar_loops(dtype: torch.dtype, iou_threshold: float):
    boxes, scores = make_boxes(90, seed=1, dtype=dtype)
    kept = nms(boxes, scores, iou_threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == slow_nms(boxes, scores, torch.zeros(90), iou_threshold)


def test_threshold_is_exclusive():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.499).tolist() == [0]


def test_equal_scores_keep_the_first():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(5, 1)
    assert nms(boxes, torch.ones(5), 0.5).tolist() == [0]


@pytest.mark.parametrize("spread", [50.0, 400.0, 4000.0])
def test_equals_torchvision(spread: float):
    torchvision = pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(1500, 2, generator=generator) * spread
    boxes = torch.cat([corners, corners + torch.rand(1500, 2, generator=generator) * 60], 1)
    scores = torch.rand(1500, generator=generator)
    for iou_threshold in (0.1, 0.5, 0.7):
        assert nms(boxes, scores, iou_threshold).equal(torchvision.ops.nms(boxes, scores, iou_threshold))


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1030, 2100])
def test_equals_plain_pytorch(count: int):
    boxes, scores = make_boxes(count, seed=count, spread=200)
    idxs = torch.arange(count) % 3 - 1
    assert nms(boxes, scores, 0.4).equal(reference.nms(boxes, scores, None, 0.4))
    assert batched_nms(boxes, scores, idxs, 0.4).equal(reference.nms(boxes, scores, idxs, 0.4))


@pytest.mark.parametrize("idx_dtype", [torch.int64, torch.int32, torch.uint8])
def test_batched_equals_scalar_loops(idx_dtype: torch.dtype):
    boxes, scores = make_boxes(120, seed=5, spread=20)
    idxs = torch.randint(0, 4, (120,), generator=torch.Generator().manual_seed(0)).to(idx_dtype)
    assert batched_nms(boxes, scores, idxs, 0.3).tolist() == slow_nms(boxes, scores, idxs, 0.3)


def test_batched_keeps_groups_apart_far_from_the_origin():
    boxes = torch.tensor([[1e30, 1e30, 2e30, 2e30], [0, 0, 10, 10], [0, 0, 10, 9]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert batched_nms(boxes, scores, torch.tensor([0, 2**40, 2**40]), 0.5).tolist() == [0, 1]
    assert batched_nms(boxes, scores, torch.tensor([0, 2**40, -(2**40)]), 0.5).tolist() == [0, 1, 2]


def test_strides_do_not_matter():
    boxes, scores = make_boxes(200, seed=8)
    wide = torch.zeros(200, 8)
    wide[:, ::2] = boxes
    expected = nms(boxes, scores, 0.3)
    assert nms(wide[:, ::2], scores, 0.3).equal(expected)
    assert nms(boxes.T.contiguous().T, scores, 0.3).equal(expected)
    assert nms(boxes, torch.stack([scores, scores], 1)[:, 0], 0.3).equal(expected)


def test_same_for_any_number_of_threads(threads):
    boxes, scores = make_boxes(6000, seed=9, spread=900)
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(nms(boxes, scores, 0.5))
    assert answers[0].equal(answers[1])
    assert answers[0].equal(answers[2])


def test_infinite_scores_have_their_place():
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    assert nms(boxes, torch.tensor([-torch.inf, torch.inf, 0.0]), 0.5).tolist() == [1, 2, 0]


@pytest.mark.parametrize("op", [nms, reference.nms])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_boxes_that_are_not_finite(op, value: float):
    boxes, scores = make_boxes(20, seed=1)
    boxes[7, 2] = value
    arguments = (boxes, scores, 0.5) if op is nms else (boxes, scores, None, 0.5)
    with pytest.raises(RuntimeError, match=r"boxes: expected finite numbers, got .* in box 7"):
        op(*arguments)


def test_refuses_nan_scores():
    boxes, scores = make_boxes(20, seed=1)
    scores[3] = torch.nan
    with pytest.raises(RuntimeError, match="scores: expected no NaN, got one in box 3"):
        nms(boxes, scores, 0.5)


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3), r"nms: boxes: expected shape \(N, 4\), got \(3, 5\)"),
        (torch.zeros(12), torch.zeros(3), r"nms: boxes: expected shape \(N, 4\), got \(12,\)"),
        (torch.zeros(3, 4), torch.zeros(4), r"nms: scores: expected shape \(3,\), got \(4,\)"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3), "nms: boxes: expected float.*got torch.int64"),
        (torch.zeros(3, 4), torch.zeros(3).double(), "nms: scores: expected the dtype of boxes.*got torch.float64"),
        (torch.zeros(3, 4), torch.zeros(3, device="meta"), "nms: scores: expected the device of boxes, cpu, got meta"),
        ([[0, 0, 1, 1]], torch.zeros(1), "nms: boxes: expected a tensor, got list"),
    ],
)
def test_messages(boxes, scores, message: str):
    with pytest.raises(ValueError, match=message):
        nms(boxes, scores, 0.5)


def test_batched_messages():
    with pytest.raises(ValueError, match="idxs: expected a tensor of whole numbers, got list"):
        batched_nms(torch.zeros(3, 4), torch.zeros(3), [0, 0, 1], 0.5)
    with pytest.raises(ValueError, match=r"idxs: expected shape \(3,\), got \(2,\)"):
        batched_nms(torch.zeros(3, 4), torch.zeros(3), torch.zeros(2, dtype=torch.int64), 0.5)


@pytest.mark.parametrize("grouped", [False, True])
def test_opcheck(grouped: bool):
    boxes, scores = make_boxes(30, seed=2)
    idxs = torch.arange(30) % 2 if grouped else None
    for needs_grad in (False, True):
        arguments = (boxes.clone().requires_grad_(needs_grad), scores, idxs, 0.5)
        torch.library.opcheck(torch.ops.visionlab.nms.default, arguments)


def test_has_no_gradient():
    boxes, scores = make_boxes(30, seed=2)
    assert not nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5).requires_grad


def test_compiles_in_one_graph():
    boxes, scores = make_boxes(40, seed=4)
    compiled = torch.compile(
        lambda boxes, scores: boxes[nms(boxes, scores, 0.4)] * 2, fullgraph=True, backend="aot_eager"
    )
    assert compiled(boxes, scores).equal(boxes[nms(boxes, scores, 0.4)] * 2)


def test_autocast_takes_mixed_dtypes():
    boxes, scores = make_boxes(40, seed=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nms(boxes, scores.bfloat16(), 0.4).equal(nms(boxes, scores.bfloat16().float(), 0.4))


@pytest.mark.parametrize("count", [0, 1, 90])
@pytest.mark.parametrize("max_output", [0, 1, 10, 200])
def test_padded_is_the_head_of_nms(count: int, max_output: int):
    boxes, scores = make_boxes(count, seed=3)
    kept = nms(boxes, scores, 0.4).tolist()[:max_output]
    for op in (nms_padded, reference.nms_padded):
        indices, number = op(boxes, scores, 0.4, max_output)
        assert indices.dtype == number.dtype == torch.int64
        assert number.shape == ()
        assert number.item() == len(kept)
        assert indices.tolist() == kept + [0] * (max_output - len(kept))


@pytest.mark.parametrize("leading", [(3,), (2, 3), (0,), (2, 0)])
def test_padded_looks_at_each_set_by_itself(leading: tuple[int, ...]):
    sets = [make_boxes(40, seed=seed) for seed in range(6)][: torch.Size(leading).numel()]
    boxes = torch.stack([*(of_set for of_set, _ in sets), torch.zeros(40, 4)])[:-1].reshape(*leading, 40, 4)
    scores = torch.stack([*(of_set for _, of_set in sets), torch.zeros(40)])[:-1].reshape(*leading, 40)
    indices, counts = nms_padded(boxes, scores, 0.4, 20)
    assert indices.shape == (*leading, 20)
    assert counts.shape == leading
    answers = zip(indices.reshape(-1, 20), counts.flatten(), strict=True)
    for (of_set, count), arguments in zip(answers, sets, strict=True):
        expected, number = nms_padded(*arguments, 0.4, 20)
        assert of_set.equal(expected)
        assert count == number


def test_padded_sets_opcheck():
    boxes, scores = make_boxes(30, seed=2)
    arguments = (boxes.reshape(3, 10, 4), scores.reshape(3, 10), 0.5, 12)
    torch.library.opcheck(torch.ops.visionlab.nms_padded_sets.default, arguments)


def test_padded_messages():
    with pytest.raises(ValueError, match="nms_padded: max_output: expected at least 0, got -1"):
        nms_padded(torch.zeros(3, 4), torch.zeros(3), 0.5, -1)
    with pytest.raises(ValueError, match=r"nms_padded: boxes: expected shape \(N, 4\), got \(3, 5\)"):
        nms_padded(torch.zeros(3, 5), torch.zeros(3), 0.5, 2)
    with pytest.raises(ValueError, match=r"nms_padded: boxes: expected shape \(N, 4\), got \(4,\)"):
        nms_padded(torch.zeros(4), torch.zeros(3), 0.5, 2)
    with pytest.raises(ValueError, match=r"nms_padded: scores: expected shape \(2, 3\), got \(3,\)"):
        nms_padded(torch.zeros(2, 3, 4), torch.zeros(3), 0.5, 2)
    with pytest.raises(RuntimeError, match="boxes: expected finite numbers"):
        nms_padded(torch.full((3, 4), torch.nan), torch.zeros(3), 0.5, 2)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_padded_opcheck(needs_grad: bool):
    boxes, scores = make_boxes(30, seed=2)
    arguments = (boxes.requires_grad_(needs_grad), scores, 0.5, 12)
    torch.library.opcheck(torch.ops.visionlab.nms_padded.default, arguments)


class BestBoxes(torch.nn.Module):
    """The best boxes, zeros behind them."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        indices, count = nms_padded(boxes, scores, 0.4, 25)
        return boxes[indices] * (torch.arange(25) < count)[:, None]


def test_padded_graphs_have_no_sizes_of_their_own():
    example = make_boxes(40, seed=4)
    dim = torch.export.Dim("count", min=2, max=1000)
    exported = torch.export.export(BestBoxes(), example, dynamic_shapes=({0: dim}, {0: dim}))
    assert not any("u0" in str(node.meta.get("val")) for node in exported.graph.nodes)
    torch._dynamo.reset()
    compiled = torch.compile(BestBoxes(), fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (30, 70):
        boxes, scores = make_boxes(count, seed=count)
        expected = torch.zeros(25, 4)
        kept = nms(boxes, scores, 0.4)[:25]
        expected[: len(kept)] = boxes[kept]
        assert exported.module()(boxes, scores).equal(expected)
        assert compiled(boxes, scores).equal(expected)


def same_at_every_level() -> list[Tensor]:
    """Answers that test_levels.py compares bit for bit."""
    answers = []
    for count, spread in [(1, 9), (64, 30), (65, 30), (700, 90), (2500, 4000)]:
        for dtype in (torch.float32, torch.float64):
            boxes, scores = make_boxes(count, seed=count, spread=spread, dtype=dtype)
            answers += [nms(boxes, scores, 0.3), nms_padded(boxes, scores, 0.3, 70)[0]]
            answers += [batched_nms(boxes, scores, torch.arange(count) % 3, 0.3)]
    # More boxes than have their words in memory at once.
    return [*answers, nms(*make_boxes(24000, seed=1, spread=9000), 0.3)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1030, 5000, 30000])
@pytest.mark.parametrize("spread", [60.0, 4000.0])
def test_cuda_equals_cpu(count: int, spread: float):
    for dtype in (torch.float32, torch.float64, torch.float16):
        boxes, scores = make_boxes(count, seed=count, spread=spread, dtype=dtype)
        idxs = torch.arange(count) % 3
        on_gpu = boxes.cuda(), scores.cuda()
        assert nms(*on_gpu, 0.5).cpu().equal(nms(boxes, scores, 0.5))
        assert batched_nms(*on_gpu, idxs.cuda(), 0.5).cpu().equal(batched_nms(boxes, scores, idxs, 0.5))
        for ours, expected in zip(nms_padded(*on_gpu, 0.5, 50), nms_padded(boxes, scores, 0.5, 50), strict=True):
            assert ours.cpu().equal(expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_leaves_out_what_is_not_finite():
    boxes, scores = make_boxes(200, seed=1)
    boxes[3, 1], boxes[9, 2], boxes[10, 0], scores[11] = torch.nan, torch.inf, -torch.inf, torch.nan
    good = torch.tensor([i for i in range(200) if i not in (3, 9, 10, 11)])
    expected = good[nms(boxes[good], scores[good], 0.4)]
    assert nms(boxes.cuda(), scores.cuda(), 0.4).cpu().equal(expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_padded_is_captured_in_a_graph():
    boxes, scores = (tensor.cuda() for tensor in make_boxes(500, seed=1))
    expected = nms_padded(boxes, scores, 0.4, 60)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # refuses whatever waits for the device
        answers = nms_padded(boxes, scores, 0.4, 60)
    graph.replay()
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.equal(theirs)

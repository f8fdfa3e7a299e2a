"""Boxes against loops over scalars, and against torchvision's functions of the same names."""

import pytest
import torch
from torch import Tensor

from visionlab.ops.boxes import box_area, box_intersection, box_iou, clip_boxes_to_image, remove_small_boxes
from visionlab.ops.reference import boxes as reference

FORMATS = ["xyxy", "xywh", "cxcywh"]
SHAPES = [(1, 1), (3, 17), (17, 3), (40, 70)]


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    return torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 30), dim=1)


def test_area_intersection_and_iou_by_loops():
    boxes1, boxes2 = random_boxes(7, 0), random_boxes(9, 1)
    for i, (ax1, ay1, ax2, ay2) in enumerate(boxes1.tolist()):
        area1 = (ax2 - ax1) * (ay2 - ay1)
        assert box_area(boxes1)[i].item() == pytest.approx(area1, rel=1e-4)
        for j, (bx1, by1, bx2, by2) in enumerate(boxes2.tolist()):
            shared = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
            union = area1 + (bx2 - bx1) * (by2 - by1) - shared
            assert box_intersection(boxes1, boxes2)[i, j].item() == pytest.approx(shared, rel=1e-4)
            assert box_iou(boxes1, boxes2)[i, j].item() == pytest.approx(shared / union, rel=1e-4)


def test_iou_of_boxes_without_area():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert box_iou(point, point).isnan().all()
    assert box_iou(point, torch.tensor([[0.0, 0.0, 10.0, 10.0]])).item() == 0


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (0, 0)])
def test_iou_of_no_boxes(rows, columns):
    assert box_iou(random_boxes(rows, 0), random_boxes(columns, 1)).shape == (rows, columns)


def test_clip_keeps_boxes_inside_height_and_width():
    boxes = torch.tensor([[-5.0, -6.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0], [50.0, 60.0, 70.0, 80.0]])
    expected = torch.tensor([[0.0, 0.0, 20.0, 10.0], [1.0, 2.0, 3.0, 4.0], [20.0, 10.0, 20.0, 10.0]])
    assert torch.equal(clip_boxes_to_image(boxes, (10, 20)), expected)
    assert torch.equal(clip_boxes_to_image(boxes[None], (10, 20)), expected[None])


def test_small_boxes_and_boxes_with_nan_go():
    boxes = torch.tensor(
        [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.9, 5.0], [0.0, 0.0, 9.0, 9.0], [0.0, 0.0, float("nan"), 9.0]]
    )
    assert remove_small_boxes(boxes, 1.0).tolist() == [0, 2]


def make(count: int, seed: int, fmt: str = "xyxy", dtype: torch.dtype = torch.float64, batch: tuple = ()) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand((*batch, count, 4), generator=generator, dtype=torch.float64) * 20 + 1
    if fmt == "xyxy":
        numbers[..., 2:] += numbers[..., :2]
    return numbers.to(dtype)


def slow_corners(box: list[float], fmt: str) -> list[float]:
    a, b, c, d = box
    return {"xyxy": [a, b, c, d], "xywh": [a, b, a + c, b + d], "cxcywh": [a - c / 2, b - d / 2, a + c / 2, b + d / 2]}[
        fmt
    ]


def run(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy", op=box_iou) -> list[Tensor]:
    """The overlaps and both gradients."""
    boxes1, boxes2 = boxes1.detach().requires_grad_(), boxes2.detach().requires_grad_()
    output = op(boxes1, boxes2, fmt)
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, (boxes1, boxes2), grad)]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_iou_by_loops_in_every_format(shape: tuple[int, int], fmt: str):
    boxes1, boxes2 = make(shape[0], 1, fmt), make(shape[1], 2, fmt)
    overlaps = box_iou(boxes1, boxes2, fmt)
    areas = box_area(boxes1, fmt).tolist()
    for i, (ax1, ay1, ax2, ay2) in enumerate(slow_corners(box, fmt) for box in boxes1.tolist()):
        assert areas[i] == pytest.approx((ax2 - ax1) * (ay2 - ay1))
        for j, (bx1, by1, bx2, by2) in enumerate(slow_corners(box, fmt) for box in boxes2.tolist()):
            shared = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
            assert overlaps[i, j].item() == pytest.approx(shared / union, rel=1e-12)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [((), ()), ((2,), (2,)), ((3, 1), (2,)), ((), (2,))])
def test_iou_and_gradients_are_torchvisions(fmt: str, dtype: torch.dtype, batch: tuple):
    theirs = pytest.importorskip("torchvision.ops").box_iou
    boxes1, boxes2 = make(19, 3, fmt, dtype, batch[0]), make(35, 4, fmt, dtype, batch[1])
    boxes2[..., :4, :] = boxes1.reshape(-1, 19, 4)[0, :4]  # ties
    ours, expected = run(boxes1, boxes2, fmt), run(boxes1, boxes2, fmt, theirs)
    assert ours[0].equal(expected[0])
    assert ours[0].dtype == expected[0].dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for a, b in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fmt", FORMATS)
def test_iou_of_strange_values_is_torchvisions(fmt: str):
    theirs = pytest.importorskip("torchvision.ops").box_iou
    values = torch.tensor([0.0, 1.0, -2.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 3e38, 1e-40])
    chosen = torch.randint(0, len(values), (300, 4), generator=torch.Generator().manual_seed(1))
    boxes = values[chosen]
    ours, expected = box_iou(boxes, boxes, fmt), theirs(boxes, boxes, fmt)
    assert ours.isnan().equal(expected.isnan())
    assert ours.nan_to_num(9, 8, 7).equal(expected.nan_to_num(9, 8, 7))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_torchvisions(dtype: torch.dtype):
    ops = pytest.importorskip("torchvision.ops")
    boxes1, boxes2 = make(19, 3).round().to(dtype), make(35, 4).round().to(dtype)
    for fmt in FORMATS:
        ours, expected = box_iou(boxes1, boxes2, fmt), ops.box_iou(boxes1, boxes2, fmt)
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2, equal_nan=True)
        assert ops.box_area(boxes1, fmt).equal(box_area(boxes1, fmt))
    assert box_iou(boxes1, boxes2.double()).dtype == ops.box_iou(boxes1, boxes2.double()).dtype


def test_rotated_boxes_are_left_to_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    boxes = torch.tensor([[5.0, 5, 4, 2, 30], [5, 5, 4, 2, 120]])
    assert box_iou(boxes, boxes, "cxcywhr").equal(ops.box_iou(boxes, boxes, "cxcywhr"))


@pytest.mark.parametrize("fmt", FORMATS)
def test_gradcheck(fmt: str):
    boxes1, boxes2 = make(3, 5, fmt).requires_grad_(), make(4, 6, fmt).requires_grad_()
    torch.autograd.gradcheck(lambda a, b: box_iou(a, b, fmt), (boxes1, boxes2))


def test_double_backward_raises():
    boxes = make(3, 5).requires_grad_()
    (grad,) = torch.autograd.grad(box_iou(boxes, make(4, 6)).sum(), boxes, create_graph=True)
    with pytest.raises(RuntimeError, match="box_iou: double backward is not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3), (3, 0)])
def test_reference_equals_kernel(shape: tuple[int, int], fmt: str):
    boxes1, boxes2 = make(shape[0], 1, fmt, batch=(2,)), make(shape[1], 2, fmt, batch=(2,))
    format = FORMATS.index(fmt)
    op, backward = torch.ops.visionlab.box_iou, torch.ops.visionlab.box_iou_backward
    overlaps = op(boxes1, boxes2, format)
    assert overlaps.equal(reference.box_iou(boxes1, boxes2, format))
    arguments = (overlaps.cos(), boxes1, boxes2, format)
    torch.testing.assert_close(backward(*arguments), reference.box_iou_backward(*arguments), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(needs_grad: bool):
    boxes1, boxes2 = make(5, 1, batch=(2,)).requires_grad_(needs_grad), make(6, 2, batch=(2,))
    torch.library.opcheck(torch.ops.visionlab.box_iou.default, (boxes1, boxes2, 0))
    grad = torch.ones(2, 5, 6, dtype=torch.float64)
    torch.library.opcheck(torch.ops.visionlab.box_iou_backward.default, (grad, boxes1.detach(), boxes2, 1))


def test_strides_and_threads_do_not_matter(threads):
    boxes1, boxes2 = make(90, 1, dtype=torch.float32), make(700, 2, dtype=torch.float32)
    wide = torch.zeros(700, 8)
    wide[:, ::2] = boxes2
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(run(boxes1.T.contiguous().T, wide[:, ::2]))
        answers.append(run(boxes1, boxes2))
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], answer, strict=True))


def same_at_every_level() -> list[Tensor]:
    """Answers that test_levels.py compares bit for bit."""
    return [
        answer
        for dtype in (torch.float32, torch.float64)
        for fmt in FORMATS
        for answer in run(make(37, 1, fmt, dtype), make(91, 2, fmt, dtype), fmt)
    ]


def test_transforms():
    boxes1, boxes2 = make(5, 1, batch=(3,)), make(6, 2)
    each = torch.func.vmap(box_iou, in_dims=(0, None))(boxes1, boxes2)
    assert each.equal(box_iou(boxes1, boxes2))
    loss = lambda boxes: box_iou(boxes, boxes2).square().sum()  # noqa: E731
    (expected,) = torch.autograd.grad(loss(boxes1.requires_grad_()), boxes1)
    torch.testing.assert_close(torch.func.grad(loss)(boxes1.detach()), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(boxes1.detach()), expected)


class Both(torch.nn.Module):
    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return box_iou(boxes1, boxes2, "cxcywh") * 2


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(Both(), fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, columns in ((4, 6), (7, 3)):
        boxes = [make(count, count, "cxcywh").requires_grad_() for count in (rows, columns)]
        answers = [torch.autograd.grad(function(*boxes).sin().sum(), boxes) for function in (compiled, Both())]
        for a, b in zip(*answers, strict=True):
            torch.testing.assert_close(a, b)


def test_exports():
    dims = [torch.export.Dim(name, min=2, max=1000) for name in ("rows", "columns")]
    shapes = ({0: dims[0]}, {0: dims[1]})
    exported = torch.export.export(Both(), (make(4, 1), make(6, 2)), dynamic_shapes=shapes).module()
    assert exported(make(9, 1), make(3, 2)).equal(Both()(make(9, 1), make(3, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 5), torch.zeros(3, 4)), r"boxes1: expected shape \(\.\.\., N, 4\), got \(3, 5\)"),
        ((torch.zeros(3, 4), torch.zeros(4)), r"boxes2: expected shape \(\.\.\., M, 4\), got \(4,\)"),
        ((torch.zeros(3, 4), [[0, 0, 1, 1]]), "boxes2: expected a tensor of real numbers, got list"),
        (
            (torch.zeros(3, 4).cfloat(), torch.zeros(3, 4)),
            "boxes1: expected a tensor of real numbers, got torch.complex",
        ),
        (
            (torch.zeros(3, 4), torch.zeros(3, 4, device="meta")),
            "boxes2: expected the device of boxes1, cpu, got meta",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(5, 3, 4)),
            r"boxes2: expected leading dimensions that broadcast .*got shape \(5, 3, 4\)",
        ),
        ((torch.zeros(3, 4), torch.zeros(3, 4), "yxyx"), "box_iou: fmt: expected one of xyxy, .*xyxyxyxy, got 'yxyx'"),
    ],
)
def test_messages(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        box_iou(*arguments)


def test_area_of_an_unknown_format():
    with pytest.raises(ValueError, match="box_area: fmt: expected one of xyxy, xywh, cxcywh, got 'cxcywhr'"):
        box_area(torch.zeros(3, 5), "cxcywhr")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_equals_cpu(fmt: str, dtype: torch.dtype):
    boxes1, boxes2 = make(70, 1, fmt, dtype, (2,)), make(130, 2, fmt, dtype, (2,))
    expected = run(boxes1, boxes2, fmt)
    overlaps = box_iou(boxes1.cuda(), boxes2.cuda(), fmt)
    assert overlaps.cpu().equal(expected[0])
    ours = [boxes.cuda().requires_grad_() for boxes in (boxes1, boxes2)]
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(overlaps.shape, generator=generator, dtype=torch.float64).to(dtype).cuda()
    for a, b in zip(torch.autograd.grad(box_iou(*ours, fmt), ours, grad), expected[1:], strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)


def test_same_as_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    boxes1, boxes2 = random_boxes(20, 2), random_boxes(30, 3)
    assert torch.equal(box_area(boxes1), ops.box_area(boxes1))
    torch.testing.assert_close(box_iou(boxes1, boxes2), ops.box_iou(boxes1, boxes2))
    assert torch.equal(clip_boxes_to_image(boxes1, (40, 30)), ops.clip_boxes_to_image(boxes1, (40, 30)))
    assert torch.equal(remove_small_boxes(boxes1, 10.0), ops.remove_small_boxes(boxes1, 10.0))

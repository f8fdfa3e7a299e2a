"""The losses of boxes: by loops over plain numbers, and equal to torchvision's, gradients too."""

import math

import pytest
import torch
from torch.nn import functional as F

from visionlab.models.box_coding import decode_boxes, encode_boxes
from visionlab.models.box_losses import compare_boxes, diou_loss, giou_loss, offset_loss

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
KINDS = ["smooth_l1", "l1", "giou", "diou"]
LOSSES = {"giou": giou_loss, "diou": diou_loss}
# Overlapping, apart, touching, one in the other, the same, and some without area.
SPECIAL = torch.tensor(
    [
        [[0, 0, 10, 10], [5, 5, 15, 15]],
        [[0, 0, 10, 10], [20, 30, 40, 50]],
        [[0, 0, 10, 10], [10, 0, 20, 10]],
        [[0, 0, 30, 30], [10, 12, 20, 20]],
        [[3, 4, 9, 8], [3, 4, 9, 8]],
        [[3, 4, 3, 8], [1, 1, 9, 9]],
        [[3, 4, 3, 4], [3, 4, 3, 4]],
        [[3, 4, 3, 4], [5, 6, 5, 6]],
    ],
    dtype=torch.double,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.double) * 30
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator, dtype=torch.double) * 30), dim=1)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat((random_boxes(60, 0), SPECIAL[:, 0])), torch.cat((random_boxes(60, 1), SPECIAL[:, 1]))


def by_hand(kind: str, box: list[float], target: list[float]) -> float:
    width = min(box[2], target[2]) - max(box[0], target[0])
    height = min(box[3], target[3]) - max(box[1], target[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    union = (box[2] - box[0]) * (box[3] - box[1]) + (target[2] - target[0]) * (target[3] - target[1]) - shared
    around = (max(box[2], target[2]) - min(box[0], target[0]), max(box[3], target[3]) - min(box[1], target[1]))
    loss = 1 - (shared / union if union else 0)
    if kind == "giou":
        area = around[0] * around[1]
        return loss + ((area - union) / area if area else 0)
    distance = math.hypot(*((box[i] + box[i + 2] - target[i] - target[i + 2]) / 2 for i in (0, 1)))
    diagonal = math.hypot(*around)
    return loss + ((distance / diagonal) ** 2 if diagonal else 0)


@pytest.mark.parametrize("kind", LOSSES)
def test_each_loss_by_hand(kind):
    boxes, targets = pairs()
    expected = [by_hand(kind, box, target) for box, target in zip(boxes.tolist(), targets.tolist(), strict=True)]
    assert LOSSES[kind](boxes, targets).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "name"), [("giou", "generalized_box_iou_loss"), ("diou", "distance_box_iou_loss")])
def test_each_loss_and_its_gradient_are_torchvisions(kind, name):
    theirs = getattr(pytest.importorskip("torchvision.ops"), name)
    found = []
    for function in (LOSSES[kind], theirs):
        boxes, targets = (each.clone().requires_grad_() for each in pairs())
        loss = function(boxes, targets)
        found.append((loss, *torch.autograd.grad(loss.sum(), (boxes, targets))))
    for ours, peer in zip(*found, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(
            ours[:60], peer[:60]
        )  # of boxes that touch or have no area, gradients have two sides
    torch.testing.assert_close(found[0][0], found[1][0])


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_by_differences(kind):
    boxes, targets = random_boxes(10, 2).requires_grad_(), random_boxes(10, 3)
    assert torch.autograd.gradcheck(lambda boxes: LOSSES[kind](boxes, targets), boxes)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_without_area_have_finite_gradients(kind, dtype):
    boxes = SPECIAL[:, 0].to(dtype).requires_grad_()
    LOSSES[kind](boxes, SPECIAL[:, 1].to(dtype)).sum().backward()
    assert boxes.grad.isfinite().all()


def compare(kind, offsets, references, boxes, mask, beta=1 / 9):
    return compare_boxes(kind, offsets, references, boxes, mask, weights=WEIGHTS, beta=beta)


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_compared_with_the_boxes_they_should_make(kind):
    references, boxes = random_boxes(20, 4), random_boxes(20, 5)
    offsets = torch.randn(20, 4, generator=torch.Generator().manual_seed(6), dtype=torch.double)
    mask = torch.arange(20) % 3 > 0
    found = compare(kind, offsets, references, boxes, mask)
    if kind in LOSSES:
        expected = LOSSES[kind](decode_boxes(offsets, references, WEIGHTS), boxes)[:, None]
    else:
        targets = encode_boxes(boxes, references, WEIGHTS)
        expected = F.smooth_l1_loss(offsets, targets, reduction="none", beta=1 / 9)
        expected = (offsets - targets).abs() if kind == "l1" else expected
    torch.testing.assert_close(found, expected * mask[:, None])
    assert found[mask].gt(0).all()
    right = compare(kind, encode_boxes(boxes, references, WEIGHTS), references, boxes, mask)
    assert right.sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_may_be_anything(kind):
    offsets = torch.randn(4, 4).mul(1e30).requires_grad_()
    boxes = torch.tensor([math.nan, math.inf, -math.inf, 0])[:, None].expand(4, 4)
    loss = compare(kind, offsets, torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(4, 4), boxes, torch.zeros(4).bool())
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(offsets.grad, torch.zeros(4, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_at_all(kind):
    offsets = torch.zeros(0, 4, requires_grad=True)
    loss = compare(kind, offsets, torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0).bool()).sum()
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_offset_loss_by_formula(beta):
    offsets, targets = torch.randn(6, 4, dtype=torch.double), torch.randn(6, 4, dtype=torch.double)
    mask = torch.tensor([True, False, True, True, False, True])
    expected = 0.0
    for row, target, selected in zip(offsets.tolist(), targets.tolist(), mask.tolist(), strict=True):
        for distance in (abs(a - b) for a, b in zip(row, target, strict=True)):
            if selected:
                expected += 0.5 * distance**2 / beta if distance < beta else distance - 0.5 * beta
    assert offset_loss(offsets, targets, mask, beta).sum().item() == pytest.approx(expected)


def test_targets_that_are_masked_may_be_anything():
    offsets = torch.randn(3, 4, requires_grad=True)
    targets = torch.tensor([math.nan, math.inf, -math.inf])[:, None].expand(3, 4)
    loss = offset_loss(offsets, targets, torch.zeros(3, dtype=torch.bool), 1 / 9).sum()
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(offsets.grad, torch.zeros(3, 4))

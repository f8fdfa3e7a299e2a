"""Boxes against loops over scalars, and against torchvision's functions of the same names."""

import pytest
import torch

from visionlab.ops.boxes import box_area, box_intersection, box_iou, clip_boxes_to_image, remove_small_boxes


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


def test_iou_of_boxes_without_area_is_zero():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert box_iou(point, point).item() == 0
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


def test_same_as_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    boxes1, boxes2 = random_boxes(20, 2), random_boxes(30, 3)
    assert torch.equal(box_area(boxes1), ops.box_area(boxes1))
    torch.testing.assert_close(box_iou(boxes1, boxes2), ops.box_iou(boxes1, boxes2))
    assert torch.equal(clip_boxes_to_image(boxes1, (40, 30)), ops.clip_boxes_to_image(boxes1, (40, 30)))
    assert torch.equal(remove_small_boxes(boxes1, 10.0), ops.remove_small_boxes(boxes1, 10.0))

"""What every operator does with arguments of kinds that people do pass."""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from visionlab import ops

INPUT = torch.randn((2, 8, 12, 14), generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[0.0, 1, 2, 10, 9], [1, 3.5, -4, 13, 11], [1, 5, 5, 5.5, 6]])
POOLS = ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_roi_pool", "deform_ps_roi_pool"]


def pool(name: str, input=INPUT, boxes=BOXES, output_size=2, spatial_scale=1.0, **settings):
    if name == "deform_roi_pool":
        settings["offset"] = torch.zeros(3, 2, 2, 2)
    return getattr(ops, name)(input, boxes, output_size=output_size, spatial_scale=spatial_scale, **settings)


@pytest.mark.parametrize("name", POOLS)
def test_numpy_integers_are_sizes(name: str):
    expected = pool(name)
    assert pool(name, output_size=np.int64(2)).equal(expected)
    assert pool(name, output_size=[np.int32(2), 2]).equal(expected)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_size": 2.0}, "output_size: expected one or two whole numbers of at least 1, got 2.0"),
        ({"output_size": None}, "output_size: expected one or two whole numbers of at least 1, got None"),
        ({"output_size": "7"}, "output_size: expected one or two whole numbers"),
        ({"input": None}, "input: expected a tensor, got NoneType"),
        ({"boxes": None}, "boxes: expected a tensor or a list of one for each image, got NoneType"),
        ({"boxes": BOXES.numpy()}, "boxes: expected a tensor or a list of one for each image, got ndarray"),
        ({"spatial_scale": float("nan")}, "spatial_scale: expected a finite number, got nan"),
    ],
)
def test_messages(name: str, wrong: dict, message: str):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        pool(name, **wrong)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_boxes_of_many_images_stay_with_their_image(autocast: bool):
    input = torch.zeros(300, 1, 8, 8)
    input[257] = 1
    boxes = [torch.tensor([[1.0, 1, 5, 5]]).bfloat16()] * 300
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        map = input if autocast else input.bfloat16()
        answers = [ops.roi_align(map, boxes, 1), ops.multi_scale_roi_align([map], boxes, 1, [1.0])]
    for answer in answers:
        assert answer.flatten().nonzero().tolist() == [[257]]


def test_groups_of_floating_point():
    boxes = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) * 9
    boxes[:, 2:] += boxes[:, :2]
    scores, groups = torch.rand(60, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
    assert ops.batched_nms(boxes, scores, groups.float(), 0.3).equal(ops.batched_nms(boxes, scores, groups, 0.3))


@pytest.mark.parametrize("needs_grad", [False, True])
def test_forward_mode_is_refused_rather_than_lost(needs_grad: bool):
    calls = [lambda x: ops.roi_align(x, BOXES, 2), lambda x: ops.box_iou(x[0, 0, :, :4], x[0, 1, :, :4])]
    for call in calls:
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
            call(forward_ad.make_dual(INPUT.clone().requires_grad_(needs_grad), torch.ones_like(INPUT)))


def test_traced_without_gradients_and_trained_later():
    expected = INPUT.clone().requires_grad_()
    ops.roi_pool(expected, BOXES, 2).sum().backward()
    for program in (
        torch.jit.trace(lambda input, boxes: ops.roi_pool(input, boxes, 2), (INPUT, BOXES)),
        torch.export.export(ops.RoIPool(2, 1.0), (INPUT, BOXES)).module(),
    ):
        input = INPUT.clone().requires_grad_()
        program(input, BOXES).sum().backward()
        assert input.grad.equal(expected.grad)


def test_vmap_over_nothing():
    with pytest.raises(ValueError, match="vmap: expected at least one element, got none"):
        torch.func.vmap(lambda input: ops.roi_align(input, BOXES, 2))(INPUT[None][:0])

"""Box operators in onnxruntime: what ONNX says with operators of its own."""

import pytest
import torch
from torch import Tensor

from visionlab import ops

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")


def make(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 4, generator=generator) * 10
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    return boxes, torch.rand(count, generator=generator), torch.randint(-1, 2, (count,), generator=generator)


class BoxOperators(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return (
            ops.nms(boxes, scores, 0.5),
            boxes[ops.batched_nms(boxes, scores, groups, 0.5)[:20]],
            *ops.nms_padded(boxes, scores, 0.3, 25),
            *ops.soft_nms(boxes, scores),
            *ops.soft_nms(boxes, scores, score_threshold=0.3, method="gaussian"),
            ops.box_iou(boxes, boxes.flip(0)),
            ops.box_iou(boxes[None], boxes[None], fmt="cxcywh"),
        )


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_equals_onnxruntime(dynamic: bool):
    shapes = ({0: torch.export.Dim("N", min=2, max=1000)},) * 3 if dynamic else None
    program = torch.onnx.export(BoxOperators(), make(60), dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [input.name for input in session.get_inputs()]
    for count in (60, 35) if dynamic else (60,):
        inputs = make(count)
        outputs = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
        for ours, expected in zip(outputs, BoxOperators()(*inputs), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), expected)


class Ties(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        suppressed = [ops.nms_padded(boxes, scores, threshold, 40) for threshold in (1 / 2, 2 / 3)]
        return tuple(part for pair in suppressed for part in pair)


def test_equal_scores_and_overlaps_of_exactly_the_threshold():
    corners = torch.randint(0, 4, (60, 2), generator=torch.Generator().manual_seed(0))
    sides = torch.randint(1, 4, (60, 2), generator=torch.Generator().manual_seed(1))
    boxes, scores = torch.cat([corners, corners + sides], 1).float(), torch.arange(60) % 3 / 4
    iou = ops.box_iou(boxes, boxes)
    assert all((iou == torch.tensor(threshold)).any() for threshold in (1 / 2, 2 / 3))
    program = torch.onnx.export(Ties(), (boxes, scores), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [input.name for input in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, (boxes.numpy(), scores.numpy()), strict=True)))
    assert [part.tolist() for part in outputs] == [part.tolist() for part in Ties()(boxes, scores)]


class FarGroups(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        return ops.batched_nms(boxes, scores, groups, 0.5)


def test_groups_with_large_numbers_stay_apart():
    boxes, scores, groups = make(60)
    groups = groups + 10**7
    program = torch.onnx.export(FarGroups(), (boxes, scores, groups), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    inputs = {
        input.name: value.numpy() for input, value in zip(session.get_inputs(), (boxes, scores, groups), strict=True)
    }
    assert session.run(None, inputs)[0].tolist() == ops.batched_nms(boxes, scores, groups, 0.5).tolist()


def test_roi_pool_behind_a_convolution_is_one_node():
    class Model(torch.nn.Sequential):
        def forward(self, input: Tensor, boxes: Tensor) -> Tensor:
            return ops.roi_pool(super().forward(input), boxes, 3)

    arguments = torch.randn(1, 4, 9, 9), torch.tensor([[0.0, 1, 1, 7, 8]])
    program = torch.onnx.export(Model(torch.nn.Conv2d(4, 4, 1)), arguments, dynamo=True, verbose=False)
    assert [node.op_type for node in program.model_proto.graph.node] == ["Conv", "MaxRoiPool"]


class Pools(torch.nn.Module):
    def forward(self, boxes: Tensor, input: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
        settings = (3, 0.5)
        return (
            ops.roi_align(input, boxes, *settings),
            ops.roi_pool(input, boxes, *settings),
            ops.ps_roi_align(input, boxes, *settings),
            ops.ps_roi_pool(input, boxes, *settings),
            ops.deform_roi_pool(input, boxes, offset, *settings),
        )


def test_pools_take_as_many_samples_as_boxes_ask_for_when_the_model_runs():
    generator = torch.Generator().manual_seed(0)
    input, offset = (torch.randn(shape, generator=generator) for shape in ((2, 18, 20, 24), (5, 2, 3, 3)))
    small = torch.tensor([[0.0, 1, 2, 5, 6], [1, 0, 0, 3, 4], [1, 8, 3, 12, 9], [0, 9, 9, 9, 9], [0, 5, 5, 9, 8]])
    large = torch.tensor([[0.0, 1, 2, 45, 36], [1, 0, 0, 48, 40], [1, 8, 3, 12, 39], [0, 9, 9, 30, 9], [0, 5, 5, 9, 8]])
    program = torch.onnx.export(Pools(), (small, input, offset), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [input.name for input in session.get_inputs()]
    for boxes in (small, large):
        outputs = session.run(None, dict(zip(names, (boxes.numpy(), input.numpy(), offset.numpy()), strict=True)))
        for ours, expected in zip(outputs, Pools()(boxes, input, offset), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-5, atol=1e-5)

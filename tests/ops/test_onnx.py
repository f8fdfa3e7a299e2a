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


class Nms(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return ops.nms(boxes, scores, 0.5), boxes[ops.batched_nms(boxes, scores, groups, 0.5)[:20]]


class NmsPadded(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return ops.nms_padded(boxes, scores, 0.3, 25)


class SoftNms(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return (*ops.soft_nms(boxes, scores), *ops.soft_nms(boxes, scores, score_threshold=0.3, method="gaussian"))


class BoxIou(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return (ops.box_iou(boxes, boxes.flip(0)), ops.box_iou(boxes[None], boxes[None], fmt="cxcywh"))


@pytest.mark.parametrize("module", [Nms, NmsPadded, SoftNms, BoxIou])
@pytest.mark.parametrize("dynamic", [False, True])
def test_equals_onnxruntime(module: type[torch.nn.Module], dynamic: bool):
    shapes = ({0: torch.export.Dim("N", min=2, max=1000)},) * 3 if dynamic else None
    program = torch.onnx.export(module(), make(60), dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = {input.name for input in session.get_inputs()}
    for count in (60, 35) if dynamic else (60,):
        inputs = dict(zip(("boxes", "scores", "groups"), make(count), strict=True))
        outputs = session.run(None, {name: inputs[name].numpy() for name in names})
        for ours, expected in zip(outputs, module()(**inputs), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), expected)

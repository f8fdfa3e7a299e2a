"""Numbers that change from call to call of one compiled function: no graph breaks, and the answers are eager ones."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from visionlab import ops

BOXES = torch.tensor([[0.0, 1, 2, 10, 9], [1, 3.5, 0, 13, 11], [1, 5, 5, 5.5, 6]])
CORNERS, SCORES = BOXES[:, 1:], BOXES[:, 1]
OFFSET = torch.linspace(-1, 1, 24).reshape(3, 2, 2, 2)
WEIGHT = torch.linspace(-1, 1, 576).reshape(8, 8, 3, 3)
SCALES = (0.25, 0.125, 0.5)


def image(height: int = 12, width: int = 14) -> Tensor:
    return torch.randn((2, 8, height, width), generator=torch.Generator().manual_seed(height)).requires_grad_()


def pyramid(input: Tensor) -> list[Tensor]:
    return [input, input[:, :, ::2, ::2], input[:, :, ::4, ::4]]


def convolve(input: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    height, width = ((side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in input.shape[2:])
    return ops.deform_conv2d(
        input, input.new_full((2, 18, height, width), 0.3), WEIGHT, None, stride, padding, dilation
    )


CALLS: dict[str, tuple[Callable[..., Tensor], tuple]] = {  # a function of a map and a number, and numbers for it
    "roi_align spatial_scale": (lambda x, scale: ops.roi_align(x, BOXES, 2, scale), SCALES),
    "roi_align sampling_ratio": (lambda x, ratio: ops.roi_align(x, BOXES, 2, 0.5, ratio), (1, 2, 0)),
    "roi_align output_size": (lambda x, size: ops.roi_align(x, BOXES, (size, 2), 0.5), (1, 2, 3)),
    "roi_align aligned": (lambda x, aligned: ops.roi_align(x, BOXES, 2, 0.5, 2, aligned), (True, False)),
    "roi_pool spatial_scale": (lambda x, scale: ops.roi_pool(x, BOXES, 2, scale), SCALES),
    "ps_roi_align spatial_scale": (lambda x, scale: ops.ps_roi_align(x, BOXES, 2, scale), SCALES),
    "ps_roi_align sampling_ratio": (lambda x, ratio: ops.ps_roi_align(x, BOXES, 2, 0.5, ratio), (1, 2, 0)),
    "ps_roi_pool spatial_scale": (lambda x, scale: ops.ps_roi_pool(x, BOXES, 2, scale), SCALES),
    "deform_roi_pool spatial_scale": (lambda x, scale: ops.deform_roi_pool(x, BOXES, OFFSET, 2, scale), SCALES),
    "deform_roi_pool gamma": (lambda x, gamma: ops.deform_roi_pool(x, BOXES, OFFSET, 2, 0.5, gamma=gamma), SCALES),
    "deform_ps_roi_pool spatial_scale": (lambda x, scale: ops.deform_ps_roi_pool(x, BOXES, OFFSET, 2, scale), SCALES),
    "deform_ps_roi_pool gamma": (lambda x, gamma: ops.deform_ps_roi_pool(x, BOXES, OFFSET, 2, gamma=gamma), SCALES),
    "deform_ps_roi_pool sample_per_part": (
        lambda x, samples: ops.deform_ps_roi_pool(x, BOXES, OFFSET, 2, sample_per_part=samples),
        (1, 2, 3),
    ),
    "deform_ps_roi_pool group_size": (
        lambda x, groups: ops.deform_ps_roi_pool(x, BOXES, OFFSET, 2, group_size=groups),
        (1, 2),
    ),
    "multi_scale_roi_align scales": (
        lambda x, scale: ops.multi_scale_roi_align(pyramid(x), BOXES, 2, [scale, scale / 2, scale / 4]),
        SCALES,
    ),
    "multi_scale_roi_align canonical_scale": (
        lambda x, side: ops.multi_scale_roi_align(pyramid(x), BOXES, 2, [1, 0.5, 0.25], canonical_scale=side),
        (5.0, 6.0, 7.0),
    ),
    "nms iou_threshold": (lambda x, iou: x * len(ops.nms(CORNERS, SCORES, iou)), SCALES),
    "batched_nms iou_threshold": (
        lambda x, iou: x * len(ops.batched_nms(CORNERS, SCORES, BOXES[:, 0].long(), iou)),
        SCALES,
    ),
    "nms_padded iou_threshold": (lambda x, iou: x * ops.nms_padded(CORNERS, SCORES, iou, 3)[1], SCALES),
    "nms_padded max_output": (lambda x, most: x * ops.nms_padded(CORNERS, SCORES, 0.5, most)[1], (1, 2, 3)),
    "soft_nms iou_threshold": (lambda x, iou: x * ops.soft_nms(CORNERS, SCORES, iou)[1].sum(), SCALES),
    "soft_nms sigma": (
        lambda x, sigma: x * ops.soft_nms(CORNERS, SCORES, sigma=sigma, method="gaussian")[1].sum(),
        SCALES,
    ),
    "soft_nms score_threshold": (
        lambda x, least: x * ops.soft_nms(CORNERS, SCORES, score_threshold=least)[1].sum(),
        SCALES,
    ),
    "deform_conv2d stride": (lambda x, stride: convolve(x, stride, 1, 1), (1, 2, 3)),
    "deform_conv2d padding": (lambda x, padding: convolve(x, 1, padding, 1), (0, 1, 2)),
    "deform_conv2d dilation": (lambda x, dilation: convolve(x, 1, 2, dilation), (1, 2, 3)),
    "clip_boxes_to_image size": (lambda x, side: x * ops.clip_boxes_to_image(CORNERS, (side, side)).sum(), (5, 6, 7)),
    "remove_small_boxes min_size": (lambda x, side: x * len(ops.remove_small_boxes(CORNERS, side)), (1.0, 2.0, 6.0)),
}
MODULES: dict[str, tuple[Callable[[float], torch.nn.Module], tuple[Tensor, ...]]] = {  # and what it takes beside a map
    "RoIAlign": (lambda scale: ops.RoIAlign(2, scale, 2), (BOXES,)),
    "RoIPool": (lambda scale: ops.RoIPool(2, scale), (BOXES,)),
    "PSRoIAlign": (lambda scale: ops.PSRoIAlign(2, scale, 2), (BOXES,)),
    "PSRoIPool": (lambda scale: ops.PSRoIPool(2, scale), (BOXES,)),
    "DeformRoIPool": (lambda scale: ops.DeformRoIPool(2, scale), (BOXES, OFFSET)),
    "DeformPSRoIPool": (lambda scale: ops.DeformPSRoIPool(2, scale), (BOXES, OFFSET)),
}
FAST = ("spatial_scale", " iou_threshold", "deform_conv2d stride", "RoIAlign")


def fast_first(names: Iterable[str]) -> list:
    """Return the names as parameters of a test, all but the central ones slow."""
    return [name if name.endswith(FAST) else pytest.param(name, marks=pytest.mark.slow) for name in names]


def compare(compiled: Callable[..., Tensor], eager: Callable[..., Tensor], input: Tensor, *others: Any) -> None:
    answers = [function(input, *others) for function in (compiled, eager)]
    torch.testing.assert_close(*answers)
    torch.testing.assert_close(*(torch.autograd.grad(answer.square().sum(), input) for answer in answers))


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", fast_first(CALLS))
def test_a_number_may_change(name: str, dynamic: bool | None):
    torch._dynamo.reset()
    call, numbers = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for number in numbers:
        compare(compiled, call, image(), number)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", fast_first(MODULES))
def test_modules_of_several_scales(name: str, dynamic: bool | None):
    torch._dynamo.reset()
    make, others = MODULES[name]
    compiled = torch.compile(lambda x, pool: pool(x, *others), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for scale in SCALES:
        pool = make(scale)
        compare(compiled, lambda x, pool: pool(x, *others), image(), pool)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, side: ops.roi_align(x, BOXES, 2, x.shape[-1] / side),
        lambda x, side: ops.roi_pool(x, BOXES, 2, x.shape[-1] / side),
        lambda x, side: ops.deform_roi_pool(x, BOXES, OFFSET, 2, x.shape[-1] / side),
        pytest.param(
            lambda x, side: ops.multi_scale_roi_align(pyramid(x), BOXES, 2, [m.shape[-1] / side for m in pyramid(x)]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda x, side: ops.MultiScaleRoIAlign(["0", "1", "2"], 2, 2)(
                dict(zip("012", pyramid(x), strict=True)), [CORNERS[:1], CORNERS[1:]], [(side, side)] * 2
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["roi_align", "roi_pool", "deform_roi_pool", "multi_scale_roi_align", "MultiScaleRoIAlign"],
)
def test_a_scale_may_follow_from_a_size(call: Callable[..., Tensor], dynamic: bool | None):
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for height, side in ((12, 40), (16, 48), (20, 56), (16, 64)):
        compare(compiled, call, image(height, height + 4), side)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_with_the_default_backend(dynamic: bool | None):
    torch._dynamo.reset()
    call, numbers = CALLS["roi_align spatial_scale"]
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic)
    for number in numbers:
        compare(compiled, call, image(), number)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith("spatial_scale")])
def test_a_scale_that_is_not_finite_is_refused(name: str, scale: float):
    with pytest.raises(ValueError, match="spatial_scale"):
        CALLS[name][0](image(), scale)

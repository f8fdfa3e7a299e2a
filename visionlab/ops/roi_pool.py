"""RoIPool: pools each box of a feature map to a fixed size by the greatest value of each bin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionlab.ops.checks import check_scale, check_shape, pair, with_image_index
from visionlab.ops.formats import cast, geometry, memory_format, widen
from visionlab.ops.pools import fake_spread
from visionlab.ops.reference import roi_pool as reference
from visionlab.ops.register import differentiable, operator

_roi_pool = operator(
    "roi_pool(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, float spatial_scale, "
    "bool with_argmax) -> (Tensor, Tensor)",
    reference.roi_pool,
)
_roi_pool_backward = operator(
    "roi_pool_backward(Tensor grad, Tensor argmax, Tensor boxes, SymInt batch, SymInt channels, SymInt height, "
    "SymInt width, float spatial_scale, bool channels_last, bool deterministic) -> Tensor",
    reference.roi_pool_backward,
)


@torch.library.register_fake("visionlab::roi_pool")
def _fake(
    input: Tensor, boxes: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    output = input.new_empty(shape).to(memory_format=memory_format(input))
    argmax = torch.empty_like(output, dtype=torch.int32) if with_argmax else input.new_empty(0, dtype=torch.int32)
    return output, argmax


fake_spread(_roi_pool_backward)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    input, boxes, _, _, spatial_scale, with_argmax = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # argmax has no gradient, and needs no zeros for one
    ctx.save_for_backward(boxes, output[1])
    ctx.shape = input.shape
    ctx.settings = (spatial_scale, memory_format(input) == torch.channels_last)
    ctx.with_argmax = with_argmax


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    boxes, argmax = ctx.saved_tensors
    if not ctx.with_argmax:
        raise RuntimeError("roi_pool: the forward pass was not asked for argmax, so it has no gradient")
    deterministic = torch.are_deterministic_algorithms_enabled()
    return (_spread(grad, argmax, boxes, *ctx.shape, *ctx.settings, deterministic), *[None] * 5)


def _setup_spread(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, argmax, boxes, *_ = inputs
    ctx.save_for_backward(argmax, boxes)


def _backward_spread(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (reference.values_at(grad, *ctx.saved_tensors), *[None] * 9)  # of the bins, what their maxima get


_pool = differentiable(_roi_pool, _setup, _backward)
_spread = differentiable(_roi_pool_backward, _setup_spread, _backward_spread)


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Pool each box to ``output_size`` bins: a bin is the greatest value of the whole pixels that it touches.

    Girshick 2015, Fast R-CNN, arXiv:1504.08083. Corners are rounded to whole pixels, half away from zero, and the end
    corner belongs to the box, which has at least one pixel. Bins may share pixels; a bin outside the map is 0. A NaN
    in the map is passed over, and a bin of nothing but NaN or values below the least of float32 is that least value.
    There is a gradient for ``input``: it goes to the maximum, of equal ones to the first in the order of rows. There
    is none for ``boxes``. Half precision is computed in float32. On CUDA, a box that is not finite or names no image
    gives NaN and no gradient.

    Args:
        input: ``(N, C, H, W)`` floating point; the answer has its dtype and memory format. Less than 2^31 pixels.
        boxes: ``(K, 5)`` with rows ``image index, x1, y1, x2, y2``, or for each image ``(L, 4)`` ``x1, y1, x2, y2``; of
            the dtype of ``input`` (under autocast, any), finite, image indices in ``[0, N)``.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.

    Returns:
        ``(K, C, height, width)``.

    Raises:
        ValueError: if shapes, dtypes, devices or sizes do not fit.
        RuntimeError: on CPU, if a box is not finite or names no image.
    """
    height, width = pair("roi_pool", "output_size", output_size)
    check_shape("roi_pool", "input", input, "N", "C", "H", "W")
    check_scale("roi_pool", spatial_scale)
    boxes = with_image_index("roi_pool", boxes, input)
    values = widen(input)
    boxes = geometry(boxes.detach(), values)
    with_argmax = values.requires_grad and torch.is_grad_enabled()
    recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # which may be trained later
    with_argmax = with_argmax or recorded or torch._C._are_functorch_transforms_active()
    return cast(_pool(values, boxes, height, width, spatial_scale, with_argmax)[0], input.dtype)


class RoIPool(nn.Module):
    """Pool boxes of a feature map to a fixed size by their maxima, see :func:`roi_pool`.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
    """

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the ``(K, C, height, width)`` pooled boxes of ``input``."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"

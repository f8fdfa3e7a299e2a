"""Position-sensitive RoIPool: each bin is the mean of a map of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionlab.ops.checks import check_channels, check_pixels, check_scale, check_shape, pair, with_image_index
from visionlab.ops.formats import cast, geometry, widen
from visionlab.ops.pools import linear_pool
from visionlab.ops.reference import ps_roi_pool as reference
from visionlab.ops.register import operator

_pool = linear_pool(
    operator(
        "ps_roi_pool(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, "
        "float spatial_scale) -> Tensor",
        reference.ps_roi_pool,
    ),
    operator(
        "ps_roi_pool_backward(Tensor grad, Tensor boxes, SymInt batch, SymInt channels, SymInt height, SymInt width, "
        "float spatial_scale, bool channels_last, bool deterministic) -> Tensor",
        reference.ps_roi_pool_backward,
    ),
    position_sensitive=True,
)


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Pool each box to ``output_size`` bins, bin (i, j) of class c from channel ``(c * height + i) * width + j``.

    Dai, Li, He and Sun 2016, R-FCN, arXiv:1605.06409. A bin is the mean of the whole pixels that it touches, corners
    rounded half away from zero; a bin that touches none is 0. As in torchvision, the last row and column of the map
    are never read. The gradient is that of what is computed (torchvision's differs from it at the last row and
    column). There is none for ``boxes``. Half precision is computed in float32. On CUDA, a box that is not finite or
    names no image gives NaN and no gradient.

    Args:
        input: ``(N, classes * height * width, H, W)`` floating point; the answer has its dtype and memory format.
        boxes: ``(K, 5)`` with rows ``image index, x1, y1, x2, y2``, or for each image ``(L, 4)`` ``x1, y1, x2, y2``; of
            the dtype of ``input`` (under autocast, any), finite, image indices in ``[0, N)``.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.

    Returns:
        ``(K, classes, height, width)``.

    Raises:
        ValueError: if shapes, dtypes, devices or sizes do not fit.
        RuntimeError: on CPU, if a box is not finite or names no image.
    """
    height, width = pair("ps_roi_pool", "output_size", output_size)
    check_shape("ps_roi_pool", "input", input, "N", "C", "H", "W")
    check_scale("ps_roi_pool", spatial_scale)
    boxes = with_image_index("ps_roi_pool", boxes, input)
    check_channels("ps_roi_pool", input, height, width)
    check_pixels("ps_roi_pool", "input", input, boxes)
    values = widen(input)
    boxes = geometry(boxes.detach(), values)
    return cast(_pool(values, boxes, height, width, spatial_scale), input.dtype)


class PSRoIPool(nn.Module):
    """Pool boxes of position-sensitive maps to a fixed size, see :func:`ps_roi_pool`.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
    """

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the ``(K, classes, height, width)`` pooled boxes of ``input``."""
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"

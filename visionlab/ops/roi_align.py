"""RoIAlign: pools each box of a feature map to a fixed size by sampling between pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionlab.ops.checks import check_pixels, check_scale, check_shape, pair, with_image_index
from visionlab.ops.formats import cast, geometry, widen
from visionlab.ops.pools import linear_pool
from visionlab.ops.reference import roi_align as reference
from visionlab.ops.register import operator

_pool = linear_pool(
    operator(
        "roi_align(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, float spatial_scale, "
        "int sampling_ratio, bool aligned) -> Tensor",
        reference.roi_align,
    ),
    operator(
        "roi_align_backward(Tensor grad, Tensor boxes, SymInt batch, SymInt channels, SymInt height, SymInt width, "
        "float spatial_scale, int sampling_ratio, bool aligned, bool channels_last, bool deterministic) -> Tensor",
        reference.roi_align_backward,
    ),
)


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pool each box to ``output_size`` bins: a bin is the mean of samples linearly interpolated between pixels.

    He, Gkioxari, Dollár and Girshick 2017, Mask R-CNN, arXiv:1703.06870. There is a gradient for ``input``, none for
    ``boxes``. Half precision is computed in float32. On CUDA a box that is not finite, names no image or is so large
    that it must be clipped gives NaN and no gradient.

    Args:
        input: ``(N, C, H, W)`` floating point; the answer has its dtype and memory format.
        boxes: ``(K, 5)`` with rows ``image index, x1, y1, x2, y2``, or for each image ``(L, 4)`` ``x1, y1, x2, y2``; of
            the dtype of ``input`` (under autocast, any), finite, image indices in ``[0, N)``.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per pixel of the map that the bin covers.
        aligned: True puts pixel centers at half-integers, which is right; False is the older form, half a pixel off.

    Returns:
        ``(K, C, height, width)``.

    Raises:
        ValueError: if shapes, dtypes, devices or sizes do not fit.
        RuntimeError: if, on the CPU, a box is not finite, names no image, or is so large that it must be clipped.
    """
    height, width = pair("roi_align", "output_size", output_size)
    check_shape("roi_align", "input", input, "N", "C", "H", "W")
    check_scale("roi_align", spatial_scale)
    boxes = with_image_index("roi_align", boxes, input)
    check_pixels("roi_align", "input", input, boxes)
    values = widen(input)
    boxes = geometry(boxes.detach(), values)
    return cast(_pool(values, boxes, height, width, spatial_scale, sampling_ratio, aligned), input.dtype)


class RoIAlign(nn.Module):
    """Pool boxes of a feature map to a fixed size, see :func:`roi_align`.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per pixel of the map that the bin covers.
        aligned: True puts pixel centers at half-integers; False is the older form, half a pixel off.
    """

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the ``(K, C, height, width)`` pooled boxes of ``input``."""
        return roi_align(input, boxes, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )

"""Deformable RoI pooling: RoIAlign whose bins each move by an offset of their own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionlab.ops.checks import check_floating, check_pixels, check_scale, check_shape, pair, with_image_index
from visionlab.ops.formats import cast, geometry, widen
from visionlab.ops.pools import deformable_pool
from visionlab.ops.reference import deform_roi_pool as reference
from visionlab.ops.register import operator

_pool = deformable_pool(
    operator(
        "deform_roi_pool(Tensor input, Tensor boxes, Tensor offset, Tensor? mask, float spatial_scale, "
        "int sampling_ratio, float gamma) -> Tensor",
        reference.deform_roi_pool,
    ),
    operator(
        "deform_roi_pool_backward(Tensor grad, Tensor input, Tensor boxes, Tensor offset, Tensor? mask, "
        "float spatial_scale, int sampling_ratio, float gamma, bool input_grad, bool offset_grad, bool deterministic) "
        "-> (Tensor, Tensor, Tensor)",
        reference.deform_roi_pool_backward,
    ),
    lambda input, boxes, offset, *_: (input.shape[1], *offset.shape[2:]),
)


def deform_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    offset: Tensor | None = None,
    output_size: int | Sequence[int] = 7,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    gamma: float = 0.1,
    mask: Tensor | None = None,
) -> Tensor:
    """Pool each box as ``roi_align(aligned=True)`` does, with bin (i, j) moved by an offset of its own.

    Dai et al. 2017, Deformable Convolutional Networks, arXiv:1703.06211, section 2.2; the mask is of Zhu et al. 2018,
    Deformable ConvNets v2, arXiv:1811.11168. There are gradients for ``input``, ``offset`` and ``mask``, none for
    ``boxes``. Half precision is computed in float32. An offset that is not finite, or huge, moves its bin off the map:
    the bin is 0 and has no gradient.

    Args:
        input: ``(N, C, H, W)`` floating point; the answer has its dtype and memory format.
        boxes: ``(K, 5)`` with rows ``image index, x1, y1, x2, y2``, or for each image ``(L, 4)`` ``x1, y1, x2, y2``; of
            the dtype of ``input`` (under autocast, any), finite, image indices in ``[0, N)``.
        offset: ``(K, 2, height, width)``; bin (i, j) moves right by ``gamma * w * offset[:, 0, i, j]`` and down by
            ``gamma * h * offset[:, 1, i, j]`` for a box of ``w`` by ``h``. The horizontal plane comes first, other than
            in ``deform_conv2d``. None moves nothing.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per pixel of the map that the bin covers.
        gamma: how far an offset of 1 moves a bin, as a share of the box.
        mask: ``(K, 1, height, width)``, a factor for each bin. None is 1.

    Returns:
        ``(K, C, height, width)``.

    Raises:
        ValueError: if shapes, dtypes, devices or sizes do not fit.
        RuntimeError: on the CPU, if a box is not finite, names no image, or is so large that it must be clipped. On a
            GPU, where looking would wait for it, the answer for such a box is NaN, and it has no gradient.
    """
    op = "deform_roi_pool"
    height, width = pair(op, "output_size", output_size)
    check_shape(op, "input", input, "N", "C", "H", "W")
    check_scale(op, spatial_scale)
    boxes = with_image_index(op, boxes, input)
    check_pool(op, input, boxes, offset, mask, height, width)
    if offset is not None:
        check_shape(op, "offset", offset, boxes.shape[0], 2, height, width)
    values = widen(input)
    corners = geometry(boxes.detach(), values)
    shifts = corners.new_zeros((boxes.shape[0], 2, height, width)) if offset is None else geometry(offset, values)
    factor = None if mask is None else geometry(mask, values)
    return cast(_pool(values, corners, shifts, factor, spatial_scale, sampling_ratio, gamma), input.dtype)


def check_pool(
    op: str, input: Tensor, boxes: Tensor, offset: Tensor | None, mask: Tensor | None, height: int, width: int
) -> None:
    """Refuse what neither deformable RoI pool can take."""
    others = {name: tensor for name, tensor in (("offset", offset), ("mask", mask)) if tensor is not None}
    check_floating(op, input=input, **others)
    if mask is not None:
        check_shape(op, "mask", mask, boxes.shape[0], 1, height, width)
    check_pixels(op, "input", input, boxes)


class DeformRoIPool(nn.Module):
    """Pool boxes of a feature map with moving bins, see :func:`deform_roi_pool`.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per pixel of the map that the bin covers.
        gamma: how far an offset of 1 moves a bin, as a share of the box.
    """

    def __init__(
        self,
        output_size: int | Sequence[int] = 7,
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.gamma = gamma

    def forward(
        self,
        input: Tensor,
        boxes: Tensor | Sequence[Tensor],
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the ``(K, C, height, width)`` pooled boxes of ``input``."""
        settings = (self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma)
        return deform_roi_pool(input, boxes, offset, *settings, mask)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}"
        )

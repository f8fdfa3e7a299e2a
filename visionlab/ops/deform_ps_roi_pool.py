"""Position-sensitive deformable RoI pooling: each bin has channels of its own, and moves by an offset of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from visionlab.ops.checks import check_channels, check_scale, check_shape, pair, refuse, with_image_index
from visionlab.ops.deform_roi_pool import check_pool
from visionlab.ops.formats import cast, geometry, widen
from visionlab.ops.pools import deformable_pool
from visionlab.ops.reference import deform_ps_roi_pool as reference
from visionlab.ops.register import operator


def _shape(
    input: Tensor, boxes: Tensor, offset: Any, mask: Any, height: int, width: int, scale: float, *groups: Any
) -> tuple:
    return input.shape[1] // (groups[0] * groups[1]), height, width


_pool = deformable_pool(
    operator(
        "deform_ps_roi_pool(Tensor input, Tensor boxes, Tensor? offset, Tensor? mask, SymInt pooled_height, "
        "SymInt pooled_width, float spatial_scale, int group_height, int group_width, int sample_per_part, "
        "float gamma) -> Tensor",
        reference.deform_ps_roi_pool,
    ),
    operator(
        "deform_ps_roi_pool_backward(Tensor grad, Tensor input, Tensor boxes, Tensor? offset, Tensor? mask, "
        "float spatial_scale, int group_height, int group_width, int sample_per_part, float gamma, bool input_grad, "
        "bool offset_grad, bool deterministic) -> (Tensor, Tensor, Tensor)",
        reference.deform_ps_roi_pool_backward,
    ),
    _shape,
)


def deform_ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    offset: Tensor | None = None,
    output_size: int | Sequence[int] = 7,
    spatial_scale: float = 1.0,
    group_size: int | Sequence[int] | None = None,
    part_size: int | Sequence[int] | None = None,
    sample_per_part: int = 4,
    gamma: float = 0.1,
    mask: Tensor | None = None,
) -> Tensor:
    """Pool each bin on the channels of its place in the box, moved by an offset of its own.

    Dai et al. 2017, Deformable Convolutional Networks, arXiv:1703.06211, equations 5 and 6, sampled as the operator
    that its authors released samples. Corners of a box are rounded, halves away from zero, and both belong to it: along
    x it begins at ``round(x1) * spatial_scale - 0.5``, ends at ``(round(x2) + 1) * spatial_scale - 0.5`` and is at
    least 0.1 wide. A bin is the mean of ``sample_per_part ** 2`` samples at the first corners of its sub-bins; those
    more than half a pixel outside the map are left out of it, and a bin with none is 0. The mask is of Zhu et al. 2018,
    Deformable ConvNets v2, arXiv:1811.11168.

    There are gradients for ``input``, ``offset`` and ``mask``, none for ``boxes``. Half precision is computed in
    float32. An offset that is not finite, or huge, moves its bin off the map: the bin is 0 and has no gradient.

    Args:
        input: ``(N, C, H, W)`` floating point, C a multiple of the number of groups; the answer has its dtype and
            memory format. Channel ``(c * group_height + g) * group_width + h`` holds output channel ``c`` of group
            ``(g, h)``.
        boxes: ``(K, 5)`` with rows ``image index, x1, y1, x2, y2``, or for each image ``(L, 4)`` ``x1, y1, x2, y2``; of
            the dtype of ``input`` (under autocast, any), finite, image indices in ``[0, N)``.
        offset: ``(K, 2 * classes, part_height, part_width)``, where ``classes`` divides the output channels, which
            share offsets in ``classes`` groups of neighbors. A bin in part (i, j) of class ``c`` moves right by
            ``gamma * w * offset[:, 2 * c, i, j]`` and down by ``gamma * h * offset[:, 2 * c + 1, i, j]`` for a box of
            ``w`` by ``h``. None moves nothing.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        group_size: groups of channels ``(height, width)``, or one number for both; None is ``output_size``, and 1 pools
            without position sensitivity.
        part_size: parts ``(height, width)`` that a box has offsets for, or one number for both; None is
            ``output_size``.
        sample_per_part: samples along each side of a bin.
        gamma: how far an offset of 1 moves a bin, as a share of the box.
        mask: ``(K, 1, height, width)``, a factor for each bin. None is 1.

    Returns:
        ``(K, C / groups, height, width)``.

    Raises:
        ValueError: if shapes, dtypes, devices or sizes do not fit.
        RuntimeError: on the CPU, if a box is not finite or names no image. On a GPU, where looking would wait for it,
            the answer for such a box is NaN, and it has no gradient.
    """
    op = "deform_ps_roi_pool"
    height, width = pair(op, "output_size", output_size)
    groups = (height, width) if group_size is None else pair(op, "group_size", group_size)
    parts = (height, width) if part_size is None else pair(op, "part_size", part_size)
    if sample_per_part < 1:
        refuse(op, "sample_per_part", "at least 1", sample_per_part)
    check_shape(op, "input", input, "N", "C", "H", "W")
    check_scale(op, spatial_scale)
    boxes = with_image_index(op, boxes, input)
    check_pool(op, input, boxes, offset, mask, height, width)
    channels = input.shape[1]
    check_channels(op, input, *groups)
    if offset is not None:
        check_shape(op, "offset", offset, boxes.shape[0], "2 * classes", *parts)
        classes = offset.shape[1] // 2
        outputs = channels // (groups[0] * groups[1])
        if offset.shape[1] % 2 or not classes or outputs % classes:
            divisor = f"2 * classes channels, classes a divisor of the {outputs} output channels"
            refuse(op, "offset", divisor, offset.shape[1])
    values = widen(input)
    shifts, factor = (None if tensor is None else geometry(tensor, values) for tensor in (offset, mask))
    settings = (height, width, spatial_scale, *groups, sample_per_part, gamma)
    return cast(_pool(values, geometry(boxes.detach(), values), shifts, factor, *settings), input.dtype)


class DeformPSRoIPool(nn.Module):
    """Pool boxes with position-sensitive moving bins, see :func:`deform_ps_roi_pool`.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: pixels of the map per pixel of the box's coordinates.
        group_size: groups of channels ``(height, width)``, or one number for both; None is ``output_size``.
        part_size: parts ``(height, width)`` that a box has offsets for, or one number for both; None is
            ``output_size``.
        sample_per_part: samples along each side of a bin.
        gamma: how far an offset of 1 moves a bin, as a share of the box.
    """

    def __init__(
        self,
        output_size: int | Sequence[int] = 7,
        spatial_scale: float = 1.0,
        group_size: int | Sequence[int] | None = None,
        part_size: int | Sequence[int] | None = None,
        sample_per_part: int = 4,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.group_size = group_size
        self.part_size = part_size
        self.sample_per_part = sample_per_part
        self.gamma = gamma

    def forward(
        self,
        input: Tensor,
        boxes: Tensor | Sequence[Tensor],
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the ``(K, C / groups, height, width)`` pooled boxes of ``input``."""
        return deform_ps_roi_pool(
            input,
            boxes,
            offset,
            self.output_size,
            self.spatial_scale,
            self.group_size,
            self.part_size,
            self.sample_per_part,
            self.gamma,
            mask,
        )

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, group_size={self.group_size}, "
            f"part_size={self.part_size}, sample_per_part={self.sample_per_part}, gamma={self.gamma}"
        )

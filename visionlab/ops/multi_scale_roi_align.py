"""RoIAlign from a pyramid of features: each box is pooled from the level that fits its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionlab.ops.boxes import box_area
from visionlab.ops.checks import check_floating, check_shape, pair, refuse, with_image_index
from visionlab.ops.formats import cast, geometry, widen
from visionlab.ops.pools import linear_pool
from visionlab.ops.reference import multi_scale_roi_align as reference
from visionlab.ops.register import operator

MOST_LEVELS = 8

_pool = linear_pool(
    operator(
        "multi_scale_roi_align(Tensor[] features, Tensor boxes, Tensor levels, SymInt pooled_height, "
        "SymInt pooled_width, float[] scales, int sampling_ratio, bool aligned) -> Tensor",
        reference.multi_scale_roi_align,
    ),
    operator(
        "multi_scale_roi_align_backward(Tensor grad, Tensor boxes, Tensor levels, SymInt batch, SymInt channels, "
        "SymInt[] heights, SymInt[] widths, float[] scales, int sampling_ratio, bool aligned, bool channels_last, "
        "bool deterministic) -> Tensor[]",
        reference.multi_scale_roi_align_backward,
    ),
)


def assign_levels(
    boxes: Tensor, scales: Sequence[float], canonical_scale: float = 224, canonical_level: float = 4
) -> Tensor:
    """Return the level of a pyramid that each box is pooled from.

    Lin et al. 2016, Feature Pyramid Networks, arXiv:1612.03144, eq. 1.

    Args:
        boxes: ``(K, 4)`` ``x1, y1, x2, y2`` in pixels.
        scales: pixels of each map per pixel of the image, finest map first, each half the one before.
        canonical_scale: a square box of this side in pixels belongs to the map with scale ``2 ** -canonical_level``.
        canonical_level: see ``canonical_scale``.

    Returns:
        ``(K,)`` int64 in ``[0, len(scales))``. A box without a size, NaN too, has the finest level.
    """
    finest, coarsest = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    # The small term keeps a box of exactly the canonical size on its level whatever the rounding.
    level = torch.floor(canonical_level + torch.log2(box_area(boxes).sqrt() / canonical_scale) + 1e-6)
    last = min(coarsest, finest + len(scales) - 1)  # where the pyramid skips a map, the last one takes what is left
    return level.nan_to_num(finest).clamp(min=finest, max=last).to(torch.int64) - finest


def multi_scale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_scale: float = 224,
    canonical_level: float = 4,
) -> Tensor:
    """Pool each box by :func:`roi_align` from the level of a feature pyramid that fits its size.

    Lin et al. 2016, Feature Pyramid Networks, arXiv:1612.03144, eq. 1. There is a gradient for ``features``, none for
    ``boxes``. Half precision is computed in float32. On CUDA a box that is not finite, names no image or is so large
    that it must be clipped gives NaN and no gradient.

    Args:
        features: ``(N, C, H, W)`` floating point maps, at most 8, finest first, each of half the scale of the one
            before; the answer has the dtype and memory format of the first.
        boxes: ``(K, 5)`` with rows ``image index, x1, y1, x2, y2`` in pixels of the image, or for each image ``(L, 4)``
            ``x1, y1, x2, y2``; of the dtype of ``features`` (under autocast, any).
        output_size: bins ``(height, width)``, or one number for both.
        scales: pixels of each map per pixel of the image, as ``1 / stride``.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per pixel of the map that the bin covers.
        aligned: True puts pixel centers at half-integers, which is right; False is the older form, half a pixel off.
        canonical_scale: a square box of this side in pixels belongs to the map with scale ``2 ** -canonical_level``.
        canonical_level: see ``canonical_scale``.

    Returns:
        ``(K, C, height, width)``.

    Raises:
        ValueError: if shapes, dtypes, devices or sizes do not fit.
        RuntimeError: if, on the CPU, a box is not finite, names no image, or is so large that it must be clipped.
    """
    op = "multi_scale_roi_align"
    height, width = pair(op, "output_size", output_size)
    features, scales = list(features), [float(scale) for scale in scales]
    if not 1 <= len(features) <= MOST_LEVELS or len(scales) != len(features):
        expected = f"1 to {MOST_LEVELS} maps, and scales as many numbers"
        refuse(op, "features", expected, f"{len(features)} and {len(scales)}")
    if not all(math.inf > above >= scale > 0 for above, scale in zip([scales[0], *scales], scales, strict=False)):
        refuse(op, "scales", "positive numbers that fall from map to map", scales)
    for i, feature in enumerate(features):
        check_floating(op, **{"features[0]": features[0], f"features[{i}]": feature})
        check_shape(op, f"features[{i}]", feature, *features[0].shape[:2], "H", "W")
        if 0 in feature.shape[2:]:
            refuse(op, f"features[{i}]", "pixels to pool from", f"shape {tuple(feature.shape)}")
    boxes = with_image_index(op, boxes, features[0])
    first = widen(features[0])
    maps = [widen(feature).to(first.dtype) for feature in features]
    boxes = boxes.detach()
    levels = assign_levels(boxes[:, 1:], scales, canonical_scale, canonical_level)
    arguments = (geometry(boxes, first), levels, height, width, scales, sampling_ratio, aligned)
    return cast(_pool(maps, *arguments), features[0].dtype)


class MultiScaleRoIAlign(nn.Module):
    """Pool boxes from a feature pyramid whose scales follow from the sizes of the maps and of the images.

    Args:
        featmap_names: the maps to pool from, by their names.
        output_size: bins ``(height, width)``, or one number for both.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per pixel of the map that the bin covers.
        canonical_scale: a square box of this side in pixels belongs to the map of stride ``2 ** canonical_level``.
        canonical_level: see ``canonical_scale``.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.output_size = pair("MultiScaleRoIAlign", "output_size", output_size)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.scales: list[float] | None = None

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return the ``(K, C, height, width)`` pooled boxes.

        Args:
            x: ``(N, C, H, W)`` maps by name, finest first; maps with other names are left out.
            boxes: for each image ``(L, 4)`` ``x1, y1, x2, y2`` in pixels.
            image_shapes: ``(height, width)`` of each image; the first call infers the scales from them.
        """
        features = [feature for name, feature in x.items() if name in self.featmap_names]
        if self.scales is None:
            self.scales = _infer_scales(features, image_shapes)
        return multi_scale_roi_align(
            features,
            boxes,
            self.output_size,
            self.scales,
            self.sampling_ratio,
            canonical_scale=self.canonical_scale,
            canonical_level=self.canonical_level,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio})"
        )


def _infer_scales(features: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[float]:
    """Return the power of 2 that is nearest to the height of each map over that of the batch of images."""
    if not image_shapes:
        refuse("MultiScaleRoIAlign", "image_shapes", "the size of at least one image", "none")
    height = max(shape[0] for shape in image_shapes)
    return [2.0 ** round(math.log2(feature.shape[2] / height)) for feature in features]

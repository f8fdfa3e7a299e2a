"""RoIAlign from a pyramid of features: each box is pooled from the level that fits its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionlab.ops.boxes import box_area
from visionlab.ops.checks import cast, check_floating, check_shape, geometry, pair, widen, with_image_index
from visionlab.ops.reference import multi_scale_roi_align as reference
from visionlab.ops.reference.formats import memory_format
from visionlab.ops.register import operator

MOST_LEVELS = 8

_pool = operator(
    "multi_scale_roi_align(Tensor[] features, Tensor boxes, Tensor levels, SymInt pooled_height, "
    "SymInt pooled_width, float[] scales, int sampling_ratio, bool aligned) -> Tensor",
    reference.multi_scale_roi_align,
)
_spread = operator(
    "multi_scale_roi_align_backward(Tensor grad, Tensor boxes, Tensor levels, SymInt batch, SymInt channels, "
    "SymInt[] heights, SymInt[] widths, float[] scales, int sampling_ratio, bool aligned, bool channels_last, "
    "bool deterministic) -> Tensor[]",
    reference.multi_scale_roi_align_backward,
)


@torch.library.register_fake("visionlab::multi_scale_roi_align")
def _fake(
    features: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    pooled_height: int,
    pooled_width: int,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    shape = (boxes.shape[0], features[0].shape[1], pooled_height, pooled_width)
    return features[0].new_empty(shape).to(memory_format=memory_format(features[0]))


@torch.library.register_fake("visionlab::multi_scale_roi_align_backward")
def _fake_backward(
    grad: Tensor,
    boxes: Tensor,
    levels: Tensor,
    batch: int,
    channels: int,
    heights: list[int],
    widths: list[int],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
    deterministic: bool,
) -> list[Tensor]:
    format = torch.channels_last if channels_last else torch.contiguous_format
    shapes = [(batch, channels, height, width) for height, width in zip(heights, widths, strict=True)]
    return [grad.new_empty(shape).to(memory_format=format) for shape in shapes]


# ---- gradients: pooling is linear in the features, so each of the two operators is the gradient of the other -------


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    features, boxes, levels, _, _, scales, sampling_ratio, aligned = inputs
    ctx.save_for_backward(boxes, levels)
    ctx.maps = (
        *features[0].shape[:2],
        [feature.shape[2] for feature in features],
        [feature.shape[3] for feature in features],
        scales,
        sampling_ratio,
        aligned,
        memory_format(features[0]) == torch.channels_last,
    )


def _backward(ctx: Any, grad: Tensor) -> tuple:
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = _call(_spread, _Spread, (grad,), *ctx.saved_tensors, *ctx.maps, deterministic)
    return (list(grads), *[None] * 7)


def _setup_spread(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    grad, boxes, levels, _, _, _, _, scales, sampling_ratio, aligned, _, _ = inputs
    ctx.save_for_backward(boxes, levels)
    ctx.settings = (grad.shape[2], grad.shape[3], scales, sampling_ratio, aligned)


def _backward_spread(ctx: Any, grads: list[Tensor]) -> tuple:
    return (_call(_pool, _Pool, grads, *ctx.saved_tensors, *ctx.settings), *[None] * 11)


torch.library.register_autograd(_pool, _backward, setup_context=_setup)
torch.library.register_autograd(_spread, _backward_spread, setup_context=_setup_spread)


def _take(arg: Any, dim: Any, index: int) -> Any:
    """Return one element of a batch of tensors, of lists of them, or of what is the same for all."""
    if isinstance(dim, list | tuple):
        return [_take(one, at, index) for one, at in zip(arg, dim, strict=True)]
    return arg if dim is None or not isinstance(arg, Tensor) else arg.select(dim, index)


@torch.library.register_vmap(_pool)
def _vmap_pool(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    return torch.stack([_pool(*map(_take, args, in_dims, [i] * len(args))) for i in range(info.batch_size)]), 0


@torch.library.register_vmap(_spread)
def _vmap_spread(info: Any, in_dims: tuple, *args: Any) -> tuple[list[Tensor], list[int]]:
    gradients = [_spread(*map(_take, args, in_dims, [i] * len(args))) for i in range(info.batch_size)]
    return [torch.stack(of_map) for of_map in zip(*gradients, strict=True)], [0] * len(gradients[0])


# torch records lists of tensors for compilers only; these two, which eager calls go through, take them one by one.
class _Pool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(settings: tuple, boxes: Tensor, levels: Tensor, *features: Tensor) -> Tensor:
        return _pool(list(features), boxes, levels, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        settings, boxes, levels, *features = inputs
        _setup(ctx, (features, boxes, levels, *settings), output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        return (None, None, None, *_backward(ctx, grad)[0])


class _Spread(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(settings: tuple, boxes: Tensor, levels: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(_spread(grad, boxes, levels, *settings))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        settings, boxes, levels, grad = inputs
        _setup_spread(ctx, (grad, boxes, levels, *settings), output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:  # type: ignore[override]
        return (None, None, None, _backward_spread(ctx, list(grads))[0])


def _call(op: Any, function: Any, tensors: Sequence[Tensor], boxes: Tensor, levels: Tensor, *settings: Any) -> Any:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return op(tensors[0] if op is _spread else list(tensors), boxes, levels, *settings)
    return function.apply(settings, boxes, levels, *tensors)


# ---- what people call ----------------------------------------------------------------------------------------------


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
        raise ValueError(
            f"{op}: features must be 1 to {MOST_LEVELS} maps, and scales as many numbers, got {len(features)} and "
            f"{len(scales)}"
        )
    if not all(math.inf > above >= scale > 0 for above, scale in zip([scales[0], *scales], scales, strict=False)):
        raise ValueError(f"{op}: scales must be positive and fall from map to map, got {scales}")
    for i, feature in enumerate(features):
        check_floating(op, **{"features[0]": features[0], f"features[{i}]": feature})
        check_shape(op, f"features[{i}]", feature, *features[0].shape[:2], "H", "W")
        if 0 in feature.shape[2:]:
            raise ValueError(f"{op}: features[{i}] must have pixels to pool from, got shape {tuple(feature.shape)}")
    boxes = with_image_index(op, boxes, features[0])
    first = widen(features[0])
    maps = [widen(feature).to(first.dtype) for feature in features]
    boxes = boxes.detach()
    levels = assign_levels(boxes[:, 1:], scales, canonical_scale, canonical_level)
    arguments = (geometry(boxes, first), levels, height, width, scales, sampling_ratio, aligned)
    return cast(_call(_pool, _Pool, maps, *arguments), features[0].dtype)


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
        raise ValueError("MultiScaleRoIAlign: image_shapes must have the size of at least one image, got none")
    height = max(shape[0] for shape in image_shapes)
    return [2.0 ** round(math.log2(feature.shape[2] / height)) for feature in features]

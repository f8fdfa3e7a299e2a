"""Boxes as offsets from reference boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# exp() of more than this would make of a 16 pixel reference a box wider than 1000 pixels.
MAX_LOG_SCALE = math.log(1000 / 16)


def encode_boxes(boxes: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the offsets that turn reference boxes into boxes.

    Args:
        boxes: ``(..., 4)`` in pixels.
        references: ``(..., 4)`` in pixels, anchors or proposals.
        weights: factors of ``dx, dy, dw, dh``, which bring the offsets to similar scales.

    Returns:
        ``(..., 4)``: ``dx, dy`` in widths and heights of the reference, ``dw, dh`` as logarithms of size ratios.

    Source: Girshick et al., Rich feature hierarchies, 2014, arXiv:1311.2524, appendix C.
    """
    size, reference_size = boxes[..., 2:] - boxes[..., :2], references[..., 2:] - references[..., :2]
    center, reference_center = boxes[..., :2] + 0.5 * size, references[..., :2] + 0.5 * reference_size
    offsets = torch.cat(((center - reference_center) / reference_size, torch.log(size / reference_size)), dim=-1)
    return _scale(offsets, weights)


def decode_boxes(offsets: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the boxes that offsets make of reference boxes; the inverse of ``encode_boxes``.

    Args:
        offsets: ``(..., 4)`` as ``encode_boxes`` returns them; growth beyond a factor of 62.5 is cut.
        references: ``(..., 4)`` in pixels, anchors or proposals.
        weights: the weights that the offsets carry.

    Returns:
        ``(..., 4)`` in pixels.
    """
    offsets = _scale(offsets, [1 / weight for weight in weights])
    reference_size = references[..., 2:] - references[..., :2]
    center = references[..., :2] + 0.5 * reference_size + offsets[..., :2] * reference_size
    half = 0.5 * reference_size * offsets[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat((center - half, center + half), dim=-1)


def _scale(offsets: Tensor, factors: Sequence[float]) -> Tensor:
    # Python numbers, because a tensor of factors would have to be copied to the device, which waits for it.
    return torch.stack([offset * factor for offset, factor in zip(offsets.unbind(-1), factors, strict=True)], dim=-1)

"""Where deformable convolutions and deformable RoI pools look, drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from visionlab.eval.drawing import PALETTE, draw_frame, enlarge, join_pictures
from visionlab.structures import Detections

COLORS = [PALETTE[index] for index in (5, 1, 3)]  # of the boxes, in their order; far apart from each other
MOST = len(COLORS)  # boxes in one picture


def best_detections(detections: Detections, threshold: float) -> Detections:
    """Return the best detections, at most three, that score at least a threshold; if none does, the best of all."""
    count = min(MOST, max(1, int((detections.scores >= threshold).sum())))
    return Detections(detections.boxes[:count], detections.scores[:count], detections.labels[:count])


def draw_offsets(
    image: np.ndarray, picture: np.ndarray, boxes: Any, taps: Sequence[Any], layers: int, bins: Any | None
) -> np.ndarray:
    """Return a picture of detections, and beside it where the deformable parts of a detector look for some of them.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        picture: the picture of the detections, which stands first.
        boxes: ``(N, 4)`` array or tensor, ``x1, y1, x2, y2`` in pixels of ``image``, at most three.
        taps: for each box ``(P, 2)``, x and y; nothing where there is no deformable convolution.
        layers: how many layers these taps went through.
        bins: ``(N, k, k, 4)`` moved bins; None where there is no deformable RoI pool.
    """
    pictures, titles = [picture], ["detections"]
    if len(taps):
        pictures.append(draw_taps(image, np.asarray(boxes), [np.asarray(places) for places in taps]))
        titles.append("taps of a deformable layer" if layers == 1 else f"taps of {layers} deformable layers")
    if bins is not None:
        pictures.append(draw_bins(image, np.asarray(boxes), np.asarray(bins)))
        titles.append("bins of the deformable pool")
    return join_pictures(pictures, titles)


def draw_taps(image: np.ndarray, boxes: np.ndarray, taps: Sequence[np.ndarray], *, min_side: int = 480) -> np.ndarray:
    """Return an image with the middle of each box, and a dot at each place that is sampled for it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)``, ``x1, y1, x2, y2`` in pixels of ``image``, at most three.
        taps: for each box ``(P, 2)``, x and y.
        min_side: what the longer side is enlarged to, in pixels.
    """
    picture, scale, draw, line = _canvas(image, min_side)
    radius = max(1.5, line / 2)
    for box, places, color in zip(boxes, taps, COLORS, strict=False):
        draw_frame(draw, box * scale, color, line, picture.size)
        for x, y in places * scale[:2]:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=(0, 0, 0))
    for box in boxes:  # above all dots
        (x, y), reach = (box[:2] + box[2:]) / 2 * scale[:2], 3 * radius
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(255, 255, 255), outline=(0, 0, 0))
    return np.asarray(picture)


def draw_bins(image: np.ndarray, boxes: np.ndarray, bins: np.ndarray, *, min_side: int = 480) -> np.ndarray:
    """Return an image with boxes, and the bins of each where they have moved to.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)``, ``x1, y1, x2, y2`` in pixels of ``image``, at most three.
        bins: ``(N, k, k, 4)``, likewise.
        min_side: what the longer side is enlarged to, in pixels.
    """
    picture, scale, draw, line = _canvas(image, min_side)
    for box, own, color in zip(boxes, bins, COLORS, strict=False):
        for x1, y1, x2, y2 in own.reshape(-1, 4) * scale:
            draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color, width=line // 2)
        draw_frame(draw, box * scale, color, line, picture.size)
    return np.asarray(picture)


def _canvas(image: np.ndarray, min_side: int) -> tuple[Image.Image, np.ndarray, ImageDraw.ImageDraw, int]:
    """Return an enlarged picture, the scale of its ``x1, y1, x2, y2``, what draws on it, and the width of a line."""
    picture, scale = enlarge(Image.fromarray(image), min_side)
    return picture, scale, ImageDraw.Draw(picture), max(3, round(max(picture.size) / 240))

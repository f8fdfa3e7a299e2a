"""Boxes, labels and scores on pictures, and pictures in grids."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionlab.files import write_bytes
from visionlab.structures import Detections, Target, ViewBatch

Color = tuple[int, int, int]

# Okabe and Ito's palette, which people with color blindness can tell apart (https://jfly.uni-koeln.de/color/).
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_BLACK, _WHITE, _GRAY = (0, 0, 0), (255, 255, 255), (120, 120, 120)


def class_color(label: int) -> Color:
    """Return the color of a class, always the same: seven hues, then lighter and darker ones."""
    tier, index = divmod(int(label), len(PALETTE))
    color = np.array(PALETTE[index], dtype=float)
    if tier % 2:
        color += (255 - color) * (0.5 if tier % 4 == 1 else 0.25)
    elif tier:
        color *= 0.6 if tier % 4 == 2 else 0.8
    red, green, blue = color.round().astype(int).tolist()
    return red, green, blue


def draw_boxes(
    image: np.ndarray,
    boxes: Any,
    labels: Sequence[int],
    classes: Sequence[str],
    *,
    scores: Sequence[float] | None = None,
    crowd: Sequence[bool] | None = None,
    min_side: int = 480,
) -> np.ndarray:
    """Draw boxes with class names, and scores if there are any, onto a copy of an image.

    A small image is enlarged first, so that the text can be read. The best score lies on top.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)`` array or tensor, ``x1, y1, x2, y2`` in pixels of ``image``.
        labels: N labels in ``[0, classes)``.
        classes: the name of each label.
        scores: N scores in ``[0, 1]``.
        crowd: N flags; crowd regions are drawn in gray.
        min_side: what the longer side is enlarged to, in pixels; 0 leaves every image as it is.

    Returns:
        ``(H', W', 3)`` uint8 RGB.
    """
    picture, scale = enlarge(Image.fromarray(image), min_side)
    draw = ImageDraw.Draw(picture)
    width = max(3, round(max(picture.size) / 240))
    font = ImageFont.load_default(max(12, round(max(picture.size) / 42)))
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4) * scale
    order = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable")
    captions = []
    for i in order:
        is_crowd = crowd is not None and bool(crowd[i])
        color = _GRAY if is_crowd else class_color(labels[i])
        text = f"{classes[labels[i]]} (crowd)" if is_crowd else str(classes[labels[i]])
        draw_frame(draw, boxes[i], color, width, picture.size)
        captions.append((boxes[i], text if scores is None else f"{text} {scores[i]:.2f}", color))
    for box, text, color in captions:  # above all frames
        _draw_caption(draw, box, text, color, font, picture.size)
    return np.asarray(picture)


def draw_comparison(
    image: np.ndarray, target: Target, detections: Detections, classes: Sequence[str], *, threshold: float = 0.3
) -> np.ndarray:
    """Return the ground truth of an image and its detections side by side.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        target: with boxes in pixels of ``image``.
        detections: with boxes in pixels of ``image``.
        classes: the name of each label.
        threshold: the least score that is drawn.
    """
    shown = [i for i, score in enumerate(detections.scores.tolist()) if score >= threshold]
    boxes, labels = detections.boxes[shown].cpu(), detections.labels[shown].tolist()
    found = draw_boxes(image, boxes, labels, classes, scores=detections.scores[shown].tolist())
    true = draw_boxes(image, target.boxes.cpu(), target.labels.tolist(), classes, crowd=target.crowd.tolist())
    return join_pictures([true, found], ["ground truth", f"predictions, score at least {threshold:g}"])


def join_pictures(images: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Return pictures in one row, each under its title."""
    font_size = max(14, round(max(max(image.shape) for image in images) / 36))
    font = ImageFont.load_default(font_size)
    bar = round(font_size * 1.7)
    row = picture_grid(images, columns=len(images), gap=bar // 4)
    picture = Image.new("RGB", (row.shape[1], row.shape[0] + bar), _WHITE)
    picture.paste(Image.fromarray(row), (0, bar))
    draw = ImageDraw.Draw(picture)
    cell = max(image.shape[1] for image in images) + bar // 4
    for i, title in enumerate(titles):
        text = _shorten(draw, title, font, cell - bar)
        draw.text((i * cell + bar // 4, bar / 2), text, fill=(40, 40, 40), font=font, anchor="lm")
    return np.asarray(picture)


def picture_grid(images: Sequence[np.ndarray], *, columns: int, gap: int = 4) -> np.ndarray:
    """Return images in rows on white, each at the top left of a cell as large as the largest image."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def draw_views(batch: ViewBatch, *, max_images: int = 16, min_side: int = 96) -> np.ndarray:
    """Return the views of a batch's first images: each image is one strip of its views.

    Args:
        batch: what the pretext task gets.
        max_images: how many images are shown.
        min_side: what the longer side of a view is enlarged to, in pixels.
    """
    strips = []
    for i in range(min(len(batch), max_images)):
        views = [view[i].permute(1, 2, 0).cpu().numpy() for view in batch.views]
        views = [np.asarray(enlarge(Image.fromarray(view), min_side)[0]) for view in views]
        strips.append(picture_grid(views, columns=len(views), gap=1))
    return picture_grid(strips, columns=max(1, 8 // len(batch.views)), gap=10)


def save_jpeg(image: np.ndarray, path: str | os.PathLike[str], *, quality: int = 88) -> None:
    """Write an ``(H, W, 3)`` uint8 RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    write_bytes(Path(path), buffer.getvalue())


def enlarge(picture: Image.Image, min_side: int) -> tuple[Image.Image, np.ndarray]:
    """Return a picture, at least ``min_side`` long, and the scale of its ``x1, y1, x2, y2``."""
    factor = min_side / max(picture.size)
    if factor <= 1:
        return picture, np.ones(4)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC), np.array(size * 2) / np.array(picture.size * 2)


def draw_frame(draw: ImageDraw.ImageDraw, box: np.ndarray, color: Color, width: int, size: tuple[int, int]) -> None:
    """Draw a frame with a thin dark edge around it, so that it shows on any background."""
    last = np.array(size * 2) - 1
    x1, y1, x2, y2 = np.clip(np.round(box - [0, 0, 1, 1]), 0, last).astype(int).tolist()
    x2, y2 = max(x1, x2), max(y1, y2)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BLACK)
    draw.rectangle((x1, y1, x2, y2), outline=color, width=width)


def _draw_caption(
    draw: ImageDraw.ImageDraw, box: np.ndarray, text: str, color: Color, font: Any, size: tuple[int, int]
) -> None:
    """Write on a plate in the box's color: above the box, or inside it where the picture has no room above."""
    pad = max(2, round(font.size / 6))
    text = _shorten(draw, text, font, size[0] - 2 * pad)
    ascent, descent = font.getmetrics()
    width, height = round(draw.textlength(text, font=font)) + 2 * pad, ascent + descent + pad
    x, y = round(box[0]), round(box[1])
    left = min(max(x, 0), max(size[0] - width, 0))
    top = y - height if y >= height else y
    top = min(max(top, 0), max(size[1] - height, 0))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    draw.text((left + pad, top + pad // 2), text, fill=_text_color(color), font=font)


def _text_color(color: Color) -> Color:
    """Return black or white, whichever contrasts more (relative luminance of WCAG 2.2)."""
    channels = np.array(color) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return _BLACK if linear @ [0.2126, 0.7152, 0.0722] > 0.179 else _WHITE


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…" if text else ""

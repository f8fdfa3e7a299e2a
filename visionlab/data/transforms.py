"""Images with their boxes, made ready for a detector: crops, flips, colors, sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab.checks import check_at_least, check_in
from visionlab.data.augmentation import (
    BOXES,
    Augmentation,
    Pipeline,
    check_results,
    color_jitter,
    extra_seed,
)
from visionlab.data.geometry import CropAndFlip
from visionlab.settings import Settings, flat_settings
from visionlab.structures import Target

# A cropped object counts as long as this share of its box is left and no side is under a pixel.
MIN_VISIBLE_SHARE = 0.2
MIN_VISIBLE_SIDE = 1.0


@dataclass(frozen=True, kw_only=True)
class ImageSize(Settings):
    """The size that images are brought to.

    Args:
        short_side: length of the shorter side in pixels; of several, training draws one and evaluation takes the
            largest.
        max_size: the most pixels that the longer side may have; the shorter side gives way.
    """

    short_side: int | list[int] = 800
    max_size: int = 1333

    def __post_init__(self) -> None:
        check_at_least(1, short_side=self.short_side)
        if self.max_size < self.largest:
            raise ValueError(f"max_size: expected at least the short side, {self.largest}, got {self.max_size}")

    @property
    def short_sides(self) -> list[int]:
        """All lengths that the shorter side may have."""
        return [self.short_side] if isinstance(self.short_side, int) else list(self.short_side)

    @property
    def largest(self) -> int:
        """The largest of them."""
        return max(self.short_sides)


def resize_image(image: np.ndarray, height: int, width: int) -> Tensor:
    """Return an image at another size, by bilinear interpolation with antialiasing.

    Args:
        image: ``(H, W, 3)`` uint8.

    Returns:
        ``(3, height, width)`` uint8.
    """
    return planes(_resize(image, height, width))


def planes(image: np.ndarray) -> Tensor:
    """Return an ``(H, W, 3)`` uint8 image as a ``(3, H, W)`` tensor, contiguous and a copy."""
    channels = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(channels))  # several times as fast as copies of transposed arrays
    return torch.from_numpy(channels)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    # By its strides a batch of one image is channels-last only if it was one before its axes changed places; of any
    # other, torch makes a copy in another order, and its result is in that order as well. That is slower, but right
    # for a result one pixel wide, of which torch's kernel for processors without AVX2 mistakes the order.
    pixels = torch.from_numpy(np.ascontiguousarray(image))
    pixels = pixels[None].permute(0, 3, 1, 2) if width > 1 else pixels.permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return pixels[0].permute(1, 2, 0).numpy()


def fit(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Return the height and width at which the short side has its length, or the long side the most it may have."""
    scale = min(short_side / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class EvaluationResize:
    """Resizes an image, and its boxes with it, and does nothing else.

    Args:
        size: what it is resized to.
    """

    @flat_settings
    def __init__(self, *, size: ImageSize):
        self.short_side, self.max_size = size.largest, size.max_size

    def at(self, short_sides: list[int] | None) -> list[EvaluationResize]:
        """Return the same for each of other short sides, with which ``max_size`` grows; for None, only itself."""
        sizes = short_sides or [self.short_side]
        return [
            EvaluationResize(short_side=size, max_size=round(self.max_size * size / self.short_side)) for size in sizes
        ]

    def apply_to_image(self, image: np.ndarray) -> Tensor:
        """Return an ``(H, W, 3)`` uint8 image as a ``(3, height, width)`` uint8 tensor."""
        return resize_image(image, *fit(image.shape[0], image.shape[1], self.short_side, self.max_size))

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray, seed: int = 0
    ) -> tuple[Tensor, Target]:
        """Return the image and all of its boxes at the new size; nothing is random, so the seed is not used."""
        pixels = self.apply_to_image(image)
        return pixels, _target(_scale(boxes, image.shape[:2], pixels.shape[1:]), labels, crowd)


class DetectionTransform:
    """Changes training images at random, and their boxes with them.

    Args:
        size: what they are resized to.
        augmentation: how they are changed.
        crop: largest share of its height or width that an image loses on each of its four sides, below 0.5.
    """

    @flat_settings
    def __init__(self, *, size: ImageSize, augmentation: Augmentation, crop: float = 0.0):
        self.size = size
        check_in("[0, 0.5)", crop=crop)
        self.geometry = CropAndFlip(crop, augmentation.flip)
        strength = augmentation.color_strength
        self.colors = Pipeline(partial(color_jitter, strength)) if strength else None
        self.extra = None
        if augmentation.extra:
            check_results(augmentation.extra_steps(), (480, 640), boxes=True)
            self.extra = _Extra(augmentation)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray, seed: int
    ) -> tuple[Tensor, Target]:
        """Return an image and its boxes, changed by a pure function of all that is given.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            boxes: ``(N, 4)`` float, ``x1, y1, x2, y2`` in pixels.
            labels: ``(N,)`` int.
            crowd: ``(N,)`` bool.
            seed: all randomness derives from it.

        Returns:
            The ``(3, height, width)`` uint8 image and the objects still to be seen in it: objects that a crop left less
            than a fifth of are dropped, crowd regions stay.
        """
        generator = random.Random(seed)
        short_side = generator.choice(self.size.short_sides)
        picture, left, index = self.geometry(image, boxes, generator)
        visible = _areas(left) >= MIN_VISIBLE_SHARE * _areas(np.asarray(boxes, np.float64))[index]
        keep = visible | crowd[index]
        color_seed = generator.getrandbits(63)
        left, index = left[keep], index[keep]
        if self.extra:
            picture, left, index = self.extra(picture, left, index, crowd, extra_seed(seed))
        resized = _resize(picture, *fit(picture.shape[0], picture.shape[1], short_side, self.size.max_size))
        left = _scale(left, picture.shape[:2], resized.shape[:2])
        keep = (left[:, 2:] - left[:, :2] >= MIN_VISIBLE_SIDE).all(1)
        pixels = planes(self.colors(resized, color_seed) if self.colors else resized)
        return pixels, _target(left[keep], labels[index[keep]], crowd[index[keep]])


class _Extra:
    """Extra transforms of images with boxes. Of what they cut off or cover, crowd regions stay as long as they can."""

    def __init__(self, augmentation: Augmentation) -> None:
        visible = BOXES | {"min_visibility": MIN_VISIBLE_SHARE}
        self.objects = Pipeline(augmentation.extra_steps, visible)
        self.crowds = Pipeline(augmentation.extra_steps, BOXES)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, index: np.ndarray, crowd: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the image, and the ``(M, 4)`` boxes that are left with their ``(M,)`` places in ``crowd``."""
        changed = self.objects.seeded(seed)[0](image=image, bboxes=boxes, index=index)
        left, kept = _boxes(changed)
        if crowd[index].any():  # albumentations has one limit for all boxes, so that crowds need a pass of their own
            crowd_left, crowd_kept = _boxes(self.crowds.seeded(seed)[0](image=image, bboxes=boxes, index=index))
            left = np.concatenate([left[~crowd[kept]], crowd_left[crowd[crowd_kept]]])
            kept = np.concatenate([kept[~crowd[kept]], crowd_kept[crowd[crowd_kept]]])
        order = np.argsort(kept)
        return changed["image"], left[order], kept[order]


def _boxes(changed: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``(M, 4)`` boxes that a pipeline has left, and their ``(M,)`` numbers."""
    return np.asarray(changed["bboxes"], np.float64).reshape(-1, 4), np.asarray(changed["index"], np.int64)


def _scale(boxes: np.ndarray, old: tuple[int, ...], new: tuple[int, ...]) -> np.ndarray:
    vertical, horizontal = new[0] / old[0], new[1] / old[1]
    return np.asarray(boxes, np.float64) * (horizontal, vertical, horizontal, vertical)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _target(boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray) -> Target:
    return Target(
        torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.as_tensor(labels, dtype=torch.int64),
        torch.as_tensor(crowd, dtype=torch.bool),
    )

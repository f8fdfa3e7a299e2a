"""Images with their boxes, made ready for a detector: crops, flips, colors, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab.checks import check_at_least, check_in
from visionlab.data.augmentation import (
    BOXES,
    Augmentation,
    Pipeline,
    albumentations,
    check_results,
    color_jitter,
    extra_seed,
    flip_step,
)
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
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if pixels.shape[1:] != (height, width):
        pixels = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return pixels.contiguous()


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

    def apply_to_image(self, image: np.ndarray) -> Tensor:
        """Return an ``(H, W, 3)`` uint8 image as a ``(3, height, width)`` uint8 tensor."""
        return resize_image(image, *fit(image.shape[0], image.shape[1], self.short_side, self.max_size))

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray, seed: int = 0
    ) -> tuple[Tensor, Target]:
        """Return the image and all of its boxes at the new size; nothing is random, so the seed is not used."""
        pixels = self.apply_to_image(image)
        return pixels, _target(_scale(boxes, image, pixels), labels, crowd)


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
        self.geometry = Pipeline(partial(_geometry, crop, augmentation.flip), BOXES)
        self.colors = Pipeline(partial(color_jitter, augmentation.color_strength))
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
        geometry, generator = self.geometry.seeded(seed)
        short_side = generator.choice(self.size.short_sides)
        changed = geometry(image=image, bboxes=np.asarray(boxes, np.float64), index=np.arange(len(boxes)))
        left, index = _boxes(changed)
        picture = changed["image"]
        visible = _areas(left) >= MIN_VISIBLE_SHARE * _areas(np.asarray(boxes, np.float64))[index]
        keep = visible | crowd[index]
        color_seed = generator.getrandbits(63)
        left, index = left[keep], index[keep]
        if self.extra:
            picture, left, index = self.extra(picture, left, index, crowd, extra_seed(seed))
        pixels = resize_image(picture, *fit(picture.shape[0], picture.shape[1], short_side, self.size.max_size))
        left = _scale(left, picture, pixels)
        keep = (left[:, 2:] - left[:, :2] >= MIN_VISIBLE_SIDE).all(1)
        colored = self.colors(pixels.permute(1, 2, 0).numpy(), color_seed)
        pixels = torch.from_numpy(np.ascontiguousarray(colored.transpose(2, 0, 1)))
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


def _geometry(crop: float, flip: float) -> list[Any]:
    cut = [albumentations().RandomCropFromBorders(crop, crop, crop, crop)] if crop else []
    return cut + flip_step(flip)


def _scale(boxes: np.ndarray, image: np.ndarray, pixels: Tensor) -> np.ndarray:
    vertical, horizontal = pixels.shape[1] / image.shape[0], pixels.shape[2] / image.shape[1]
    return np.asarray(boxes, np.float64) * (horizontal, vertical, horizontal, vertical)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _target(boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray) -> Target:
    return Target(
        torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.as_tensor(labels, dtype=torch.int64),
        torch.as_tensor(crowd, dtype=torch.bool),
    )

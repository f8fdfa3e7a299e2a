"""Images with their boxes, made ready for a detector: crops, flips, colors, sizes."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab.checks import check_at_least, check_in
from visionlab.settings import Settings, flat_settings
from visionlab.structures import Target

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for a newer version
import albumentations as A

# A cropped object counts as long as this share of its box is left and no side is under a pixel.
MIN_VISIBLE_SHARE = 0.2
MIN_VISIBLE_SIDE = 1.0


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings):
    """Random changes that any image may undergo.

    Args:
        flip: probability of a horizontal mirror image.
        color_strength: how strongly brightness, contrast, saturation and hue are changed, up to 2.5; 0 not.
    """

    flip: float = 0.5
    color_strength: float = 0.0

    def __post_init__(self) -> None:
        check_in("[0, 1]", flip=self.flip)
        check_in("[0, 2.5]", color_strength=self.color_strength)


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


def seed_transform(transform: A.Compose, seed: int) -> random.Random:
    """Make the next call of a transform a pure function of ``seed``; return the generator that it draws from.

    ``Compose.set_random_seed`` would give each step a generator of its own with the same seed, so that the images that
    are flipped would be the very ones that lose their color. Here the steps take turns at one generator.
    """
    generator = random.Random(seed)
    transform.set_random_state(np.random.default_rng(seed), generator)
    return generator


def color_jitter(strength: float) -> list[A.BasicTransform]:
    """Return the step that changes brightness, contrast, saturation and hue of four images in five; none at strength 0.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
    arXiv:2002.05709, appendix A (there the strength is 1).
    """
    return [A.ColorJitter(*(strength * s for s in (0.8, 0.8, 0.8, 0.2)), p=0.8)] if strength else []


def flip_step(probability: float) -> list[A.BasicTransform]:
    """Return the step that mirrors an image from left to right; none at probability 0."""
    return [A.HorizontalFlip(p=probability)] if probability else []


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
        cut = [A.RandomCropFromBorders(crop, crop, crop, crop)] if crop else []
        boxes = A.BboxParams("pascal_voc", label_fields=["index"], clip=True, filter_invalid_bboxes=True)
        self.geometry = A.Compose([*cut, *flip_step(augmentation.flip)] or [A.NoOp()], bbox_params=boxes)
        self.colors = A.Compose(color_jitter(augmentation.color_strength))

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
        generator = seed_transform(self.geometry, seed)
        short_side = generator.choice(self.size.short_sides)
        changed = self.geometry(image=image, bboxes=np.asarray(boxes, np.float64), index=np.arange(len(boxes)))
        index = np.asarray(changed["index"], np.int64)
        left = np.asarray(changed["bboxes"], np.float64).reshape(-1, 4)
        picture = changed["image"]
        visible = _areas(left) >= MIN_VISIBLE_SHARE * _areas(np.asarray(boxes, np.float64))[index]
        seed_transform(self.colors, generator.getrandbits(63))
        pixels = resize_image(picture, *fit(picture.shape[0], picture.shape[1], short_side, self.size.max_size))
        left = _scale(left, picture, pixels)
        keep = (visible | crowd[index]) & (left[:, 2:] - left[:, :2] >= MIN_VISIBLE_SIDE).all(1)
        colored = self.colors(image=pixels.permute(1, 2, 0).numpy())["image"]
        pixels = torch.from_numpy(np.ascontiguousarray(colored.transpose(2, 0, 1)))
        return pixels, _target(left[keep], labels[index[keep]], crowd[index[keep]])


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

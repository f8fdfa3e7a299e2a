"""Random crops and mirror images with their boxes: what albumentations makes of them, without its bookkeeping.

From a generator come the very numbers, pixels and boxes of an ``albumentations.Compose`` of ``RandomCropFromBorders``
and ``HorizontalFlip`` with ``BOXES``, in a fraction of its time.
"""

from __future__ import annotations

import random

import cv2
import numpy as np

# What albumentations takes for nothing, in pixels and in square pixels.
_NOTHING = 1e-7


class CropAndFlip:
    """Cuts off the borders of an image and mirrors it from left to right, at random, and its boxes with it.

    Args:
        crop: largest share of its height or width that an image loses on each of its four sides, below 0.5.
        flip: probability of a mirror image.
    """

    def __init__(self, crop: float, flip: float) -> None:
        self.crop, self.flip = crop, flip

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, generator: random.Random
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a changed image and what is left of its boxes.

        Args:
            image: ``(H, W, 3)`` uint8.
            boxes: ``(N, 4)`` float, ``x1, y1, x2, y2`` in pixels.
            generator: what the changes are drawn from.

        Returns:
            The image, a view of the one given unless it is mirrored; the ``(M, 4)`` float64 boxes in it, clipped, those
            without area left out; and their ``(M,)`` places among those given.
        """
        height, width = image.shape[:2]
        left = _Boxes(boxes, height, width)
        generator.random()  # by which Compose decides whether to do anything at all
        if self.crop:
            x1, x2 = self._draw_span(width, generator)
            y1, y2 = self._draw_span(height, generator)
            image = image[y1:y2, x1:x2]
            left.cut(x1, y1, x2, y2)
        if self.flip:
            if self.flip == 1 or generator.random() < self.flip:
                image = cv2.flip(image, 1)
                left.mirror()
            left.clip()
        if not (self.crop or self.flip):
            generator.random()  # drawn by NoOp, which Compose needs where no other step looks at boxes
            left.clip()
        left.clip()
        return image, left.boxes * left.size, left.places

    def _draw_span(self, length: int, generator: random.Random) -> tuple[int, int]:
        start = generator.randint(0, int(self.crop * length))
        return start, generator.randint(max(start + 1, int((1 - self.crop) * length)), length)


class _Boxes:
    """Boxes of one image, as shares of its width and height.

    Each step rounds, and is followed by a clipping, as in albumentations; taken together, they would round otherwise.
    """

    def __init__(self, boxes: np.ndarray, height: int, width: int) -> None:
        self._resize(height, width)
        self.boxes: np.ndarray = np.clip((np.asarray(boxes, np.float32) / self.size).astype(np.float32), 0, 1)
        self.places = np.arange(len(boxes))
        self.clip()

    def clip(self) -> None:
        """Clip the boxes to the image, and leave out those that had no area or are outside by more than rounding."""
        clipped = np.clip(self.boxes * self.size, 0, self.size) / self.size
        pixels = clipped * self.size
        visible = (self._areas(self.boxes) >= _NOTHING) & (self._areas(clipped) >= 0)
        visible &= (pixels[:, 2:] - pixels[:, :2] >= -_NOTHING).all(1)
        self.boxes, self.places = clipped[visible], self.places[visible]

    def cut(self, x1: int, y1: int, x2: int, y2: int) -> None:
        """Leave the part of the image between these pixels."""
        pixels = self.boxes.astype(np.float32) * self.size - (x1, y1, x1, y1)
        self._resize(y2 - y1, x2 - x1)
        self.boxes = pixels / self.size
        self.clip()

    def mirror(self) -> None:
        """Mirror the image from left to right."""
        self.boxes[:, [0, 2]] = 1 - self.boxes[:, [2, 0]]

    def _resize(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.size = np.array([width, height, width, height], np.float64)

    def _areas(self, boxes: np.ndarray) -> np.ndarray:
        return (boxes[:, 2] - boxes[:, 0]) * self.width * ((boxes[:, 3] - boxes[:, 1]) * self.height)

"""Random views of unlabelled images, from which pretext methods make their tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from visionlab.checks import check_above, check_at_least, check_in
from visionlab.data.transforms import A, color_jitter, flip_step, resize, seed_transform
from visionlab.seeding import derive_seed

ViewsLike = Callable[[np.ndarray, int], list[Tensor]]
"""Makes views, each ``(3, H, W)`` uint8, of an ``(H, W, 3)`` uint8 RGB image and its seed."""


class Views:
    """A list of views of an image, each a random change of its own.

    Args:
        transforms: what makes each view. Several views may share one.
    """

    def __init__(self, transforms: list[A.Compose]):
        self.transforms = transforms

    @classmethod
    def crops(
        cls,
        image_size: int,
        *,
        count: int = 1,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        color_strength: float = 0.0,
        grayscale: float = 0.0,
        blur: float = 0.0,
        solarize: float = 0.0,
    ) -> Views:
        """Return views that are random crops, resized to a square; ``+`` joins views of different kinds.

        Args:
            image_size: side of the square, in pixels.
            count: number of views.
            crop_scale: smallest and largest share of the image's area that a view shows, in (0, 1].
            crop_ratio: smallest and largest width of the crop for each unit of height.
            flip: probability of a horizontal mirror image.
            color_strength: how strongly brightness, contrast, saturation and hue are changed; 0 not.
            grayscale: probability of losing all color.
            blur: probability of a Gaussian blur, its standard deviation from 0.1 to 2 pixels.
            solarize: probability of turning bright pixels dark.

        Raises:
            ValueError: a setting is out of its range.
        """
        check_at_least(1, image_size=image_size, count=count)
        check_in("(0, 1]", crop_scale=crop_scale)
        check_above(0, crop_ratio=crop_ratio)
        for name, pair in (("crop_scale", crop_scale), ("crop_ratio", crop_ratio)):
            if pair[0] > pair[1]:
                raise ValueError(f"{name}: expected the smaller number first, got {pair}")
        check_in("[0, 1]", grayscale=grayscale, blur=blur, solarize=solarize)
        size = (image_size, image_size)
        steps = [A.RandomResizedCrop(size, tuple(crop_scale), tuple(crop_ratio), area_for_downscale="image")]
        steps += flip_step(flip) + color_jitter(color_strength)
        if grayscale:
            steps.append(A.ToGray(p=grayscale))
        if blur:
            steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=blur))
        if solarize:
            steps.append(A.Solarize(p=solarize))
        return cls([A.Compose(steps)] * count)

    def __add__(self, other: Views) -> Views:
        return Views(self.transforms + other.transforms)

    def __len__(self) -> int:
        return len(self.transforms)

    def __call__(self, image: np.ndarray, seed: int) -> list[Tensor]:
        """Return the views of an image, view v drawn from ``derive_seed(seed, v)`` alone.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            seed: the image's seed.

        Returns:
            One ``(3, image_size, image_size)`` uint8 tensor per view.
        """
        views = []
        for number, transform in enumerate(self.transforms):
            seed_transform(transform, derive_seed(seed, number))
            view = transform(image=image)["image"]
            views.append(torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1))))
        return views


class CenterCrop:
    """Makes one view of an image, always the same: its middle, as large as fits a square.

    Args:
        image_size: side of the square, in pixels.
    """

    def __init__(self, image_size: int):
        check_at_least(1, image_size=image_size)
        self.image_size = image_size

    def __call__(self, image: np.ndarray, seed: int = 0) -> list[Tensor]:
        """Return one ``(3, image_size, image_size)`` uint8 tensor of an ``(H, W, 3)`` uint8 image."""
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        return [resize(image[top : top + side, left : left + side], self.image_size, self.image_size)]

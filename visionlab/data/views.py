"""Random views of unlabelled images, from which pretext methods make their tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from visionlab.checks import check_above, check_at_least, check_in, check_rising
from visionlab.data.augmentation import (
    Augmentation,
    Pipeline,
    albumentations,
    check_results,
    color_jitter,
    extra_seed,
    flip_step,
)
from visionlab.data.transforms import planes, resize_image
from visionlab.seeding import derive_seed
from visionlab.settings import flat_settings

ViewsLike = Callable[[np.ndarray, int], list[Tensor]]
"""Makes views, each ``(3, H, W)`` uint8, of an ``(H, W, 3)`` uint8 RGB image and its seed."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Augmentation):
    """What a view shows of an image, and how it is changed: a random crop, resized to a square.

    Args:
        image_size: side of the square, in pixels.
        crop_scale: smallest and largest share of the image's area that is shown, in (0, 1].
        grayscale: probability of losing all color.
        blur: probability of a Gaussian blur, its standard deviation from 0.1 to 2 pixels.
        solarize: probability of turning bright pixels dark.
    """

    image_size: int = 224
    crop_scale: tuple[float, float] = (0.3, 1.0)
    grayscale: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, image_size=self.image_size)
        check_in("(0, 1]", crop_scale=self.crop_scale)
        check_rising(crop_scale=self.crop_scale)
        check_in("[0, 1]", grayscale=self.grayscale, blur=self.blur, solarize=self.solarize)


class Views:
    """A list of views of an image, each a random change of its own.

    Args:
        transforms: what makes each view, an ``(H, W, 3)`` uint8 image, of an image and a seed. Several may be the same.
    """

    def __init__(self, transforms: list[Callable[[np.ndarray, int], np.ndarray]]):
        self.transforms = transforms

    @classmethod
    @flat_settings
    def crops(
        cls,
        *,
        views: ViewSettings = ViewSettings(crop_scale=(0.08, 1.0)),
        count: int = 1,
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> Views:
        """Return views that are random crops, resized to a square; ``+`` joins views of different kinds.

        Args:
            views: what each shows.
            count: number of views.
            crop_ratio: smallest and largest width of the crop for each unit of height.

        Raises:
            ValueError: a setting is out of its range.
        """
        check_at_least(1, count=count)
        check_above(0, crop_ratio=crop_ratio)
        check_rising(crop_ratio=crop_ratio)
        return cls([_Crop(views, (crop_ratio[0], crop_ratio[1]))] * count)

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
        return [planes(transform(image, derive_seed(seed, number))) for number, transform in enumerate(self.transforms)]


class _Crop:
    """Makes one view: a random crop, resized to a square and changed."""

    def __init__(self, views: ViewSettings, crop_ratio: tuple[float, float]) -> None:
        self.crop = Pipeline(partial(_crop_steps, views, crop_ratio))
        self.extra = None
        if views.extra:
            check_results(views.extra_steps(), (views.image_size, views.image_size), boxes=False)
            self.extra = Pipeline(views.extra_steps)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        view = self.crop(image, seed)
        return self.extra(view, extra_seed(seed)) if self.extra else view


def _crop_steps(views: ViewSettings, crop_ratio: tuple[float, float]) -> list[Any]:
    A, size = albumentations(), (views.image_size, views.image_size)
    steps = [A.RandomResizedCrop(size, tuple(views.crop_scale), crop_ratio, area_for_downscale="image")]
    steps += flip_step(views.flip) + color_jitter(views.color_strength)
    if views.grayscale:
        steps.append(A.ToGray(p=views.grayscale))
    if views.blur:
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=views.blur))
    if views.solarize:
        steps.append(A.Solarize(p=views.solarize))
    return steps


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
        return [resize_image(image[top : top + side, left : left + side], self.image_size, self.image_size)]

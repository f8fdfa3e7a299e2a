"""What loaders read: a sample of each image, and batches of them, for detection or for pretraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from visionlab.data.coco import CocoDataset
from visionlab.data.folder import ImageFolder
from visionlab.data.problems import Policy
from visionlab.data.views import ViewsLike
from visionlab.structures import ImageBatch, Target, ViewBatch

DetectionTransformLike = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], tuple[Tensor, Target]]


class Samples(Protocol):
    """What a loader needs to know of images: how to make a sample of each, and a batch of several."""

    @property
    def policy(self) -> Policy:
        """What happens when an image cannot be read."""

    @property
    def files(self) -> Sequence[str]:
        """The file of each image."""

    @property
    def groups(self) -> Sequence[int] | None:
        """For each image the number of its group, if batches are to be of one group."""

    def load(self, index: int, seed: int) -> Any:
        """Return a sample of an image; it may raise ``ImageError``."""

    def collate(self, samples: list[Any], indices: list[int], seeds: list[int]) -> Any:
        """Return samples, the images they were made of and the seeds they were made with as a batch."""


class DetectionSamples:
    """Labelled images and what is done to them, as samples that make an ``ImageBatch``.

    Args:
        dataset: the images and their boxes.
        transform: what is done to an image and its boxes.
        divisor: heights and widths of batches are multiples of this many pixels.
    """

    def __init__(self, dataset: CocoDataset, transform: DetectionTransformLike, *, divisor: int = 32):
        self.dataset, self.transform, self.divisor = dataset, transform, divisor
        self.policy = dataset.policy
        self.files = [record.file for record in dataset.records]
        self.groups = [int(record.width >= record.height) for record in dataset.records]

    def load(self, index: int, seed: int) -> tuple[Tensor, Target]:
        """Return an image and its objects, changed at random."""
        image, record = self.dataset.load(index)
        return self.transform(image, record.boxes, record.labels, record.crowd, seed)

    def collate(self, samples: list[tuple[Tensor, Target]], indices: list[int], seeds: list[int]) -> ImageBatch:
        """Return a batch, padded at the right and at the bottom."""
        batch = collate_images([pixels for pixels, _ in samples], divisor=self.divisor)
        records = [self.dataset.records[index] for index in indices]
        batch.targets = [target for _, target in samples]
        batch.original_sizes = [(record.height, record.width) for record in records]
        batch.ids = [record.image_id for record in records]
        batch.files = [record.file for record in records]
        batch.seeds = seeds
        return batch


class ViewSamples:
    """Unlabelled images and the views made of them, as samples that make a ``ViewBatch``.

    Args:
        dataset: the images.
        views: what is made of each.
    """

    def __init__(self, dataset: ImageFolder, views: ViewsLike):
        self.dataset, self.views = dataset, views
        self.policy = dataset.policy
        self.files = dataset.files
        self.groups = None

    def load(self, index: int, seed: int) -> list[Tensor]:
        """Return the views of an image."""
        return self.views(self.dataset.load(index), seed)

    def collate(self, samples: list[list[Tensor]], indices: list[int], seeds: list[int]) -> ViewBatch:
        """Return a batch of views."""
        views = [torch.stack(view) for view in zip(*samples, strict=True)]
        return ViewBatch(views, list(indices), [self.files[index] for index in indices], seeds)


def collate_images(images: Sequence[Tensor], *, divisor: int = 32) -> ImageBatch:
    """Return images of different sizes as one batch, padded with zeros at the right and at the bottom.

    Args:
        images: ``(3, H, W)`` uint8 each.
        divisor: the batch's height and width are multiples of this.
    """
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
    pixels = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(pixels, sizes)

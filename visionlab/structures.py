"""What rooms hand to each other: batches of images or views, targets, detections."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


class _Movable:
    """Moves every tensor of a dataclass, and those of the structures inside it."""

    def to(self, device: torch.device | str, non_blocking: bool = False, channels_last: bool = False):
        """Return a copy whose tensors are on ``device``, those of four dimensions laid out channels last if asked."""

        def move(tensor: Tensor) -> Tensor:
            layout = torch.channels_last if channels_last and tensor.ndim == 4 else torch.preserve_format
            return tensor.to(device, non_blocking=non_blocking, memory_format=layout)

        return self._map(move)

    def pin_memory(self):
        """Return a copy whose tensors are in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function):
        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, _Movable):
                return value._map(function)
            if isinstance(value, list):
                return [convert(item) for item in value]
            return value

        return replace(self, **{f.name: convert(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var, arg-type]


@dataclass
class Target(_Movable):
    """The labelled objects of one image.

    Args:
        boxes: ``(N, 4)`` float32, ``x1, y1, x2, y2`` in pixels of the image as it stands in the batch.
        labels: ``(N,)`` int64 in ``[0, classes)``; there is no background label.
        crowd: ``(N,)`` bool; a crowd region is neither an object to find nor background.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


@dataclass
class Detections(_Movable):
    """The objects found in one image, best score first.

    Args:
        boxes: ``(N, 4)`` float32, ``x1, y1, x2, y2`` in pixels; float64 from a detector in double precision.
        scores: ``(N,)`` in ``[0, 1]``, of the same precision.
        labels: ``(N,)`` int64 in ``[0, classes)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class ImageBatch(_Movable):
    """Images of different sizes in one tensor, padded with zeros at the right and at the bottom.

    Args:
        pixels: ``(N, 3, H, W)`` uint8, RGB.
        sizes: ``(height, width)`` of each image inside the padding.
        targets: one ``Target`` per image; empty when nothing is labelled.
        original_sizes: ``(height, width)`` of each image in its file, where results belong.
        ids: the image id of each image.
        files: the file of each image, for messages.
        seeds: one seed per image; all randomness spent on an image derives from it.
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target] = field(default_factory=list)
    original_sizes: list[tuple[int, int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the batch in pixels, padding included."""
        return (self.pixels.shape[2], self.pixels.shape[3])


@dataclass
class ViewBatch(_Movable):
    """Views of unlabelled images.

    Args:
        views: one ``(N, 3, H, W)`` uint8 RGB tensor per view; row i of each comes from image i.
        ids: the index of each image in its dataset.
        files: the file of each image, for messages.
        seeds: one seed per image; all randomness spent on an image derives from it.
    """

    views: list[Tensor]
    ids: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.views[0])

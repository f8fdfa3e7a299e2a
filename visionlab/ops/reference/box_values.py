"""What plain PyTorch refuses of the values of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_SAMPLES = 1 << 16


def check_finite(op: str, values: Tensor, name: str = "boxes") -> None:
    """Refuse numbers of boxes, ``(K, …)``, that are not finite."""
    if not values.isfinite().all():
        box = int(values.isfinite().reshape(len(values), -1).all(1).logical_not().nonzero()[0])
        raise RuntimeError(f"{op}: {name}: expected finite numbers, got {values[box].tolist()} in box {box}")


def check_boxes(op: str, boxes: Tensor, batch: int) -> None:
    """Refuse boxes that are not finite or that name no image."""
    check_finite(op, boxes)
    outside = ((boxes[:, 0] < 0) | (boxes[:, 0] >= batch)).nonzero()
    if len(outside):
        box = int(outside[0])
        raise RuntimeError(
            f"{op}: boxes: expected image indices in [0, {batch}), got {float(boxes[box, 0]):g} in box {box}"
        )


def check_samples(op: str, boxes: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int) -> None:
    """Refuse boxes with too many samples of a bin; ``bins`` are along y and along x."""
    for first, count in ((2, bins[0]), (1, bins[1])):
        samples = (boxes[:, first + 2] - boxes[:, first]) * scale / count
        if sampling_ratio > 0:
            samples = torch.full_like(samples, sampling_ratio)
        if (samples > MOST_SAMPLES).any():
            box = int((samples > MOST_SAMPLES).nonzero()[0])
            raise RuntimeError(
                f"{op}: boxes: expected at most {MOST_SAMPLES} samples along one side of a bin, got more in box {box}; "
                "clip boxes to the image or set sampling_ratio"
            )

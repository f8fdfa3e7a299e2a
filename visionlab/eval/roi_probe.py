"""Probes of labelled boxes: a linear classifier on the RoI features of every level of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from visionlab.eval.probe import Features, accuracy, balanced_accuracy, linear_predictions
from visionlab.ops import roi_align
from visionlab.structures import ImageBatch


@torch.no_grad()
def extract_rois(
    encode: Callable[[ImageBatch], Sequence[Tensor]],
    strides: Sequence[int],
    batches: Iterable[ImageBatch],
    device: torch.device | str = "cpu",
    *,
    output_size: int = 2,
    sampling_ratio: int = 2,
) -> Features:
    """Pool every labelled box of every level by RoIAlign; crowd regions are left out.

    Args:
        encode: a batch on ``device`` -> one ``(N, C, H, W)`` map for each stride.
        strides: of the maps.
        batches: images with targets.
        device: where to compute; the features come back to the CPU.
        output_size: bins on each side.
        sampling_ratio: samples on each side of a bin.

    Raises:
        ValueError: there is no box.
    """
    parts: dict[str, list[Tensor]] = {f"stride {stride}": [] for stride in strides}
    labels: list[Tensor] = []
    for batch in batches:
        rois, found = _rois(batch)
        if not len(found):
            continue
        rois = rois.to(device)
        for part, stride, level in zip(parts.values(), strides, encode(batch.to(device)), strict=True):
            pooled = roi_align(level, rois.to(level.dtype), output_size, 1 / stride, sampling_ratio, True)
            part.append(pooled.flatten(1).float().cpu())
        labels.append(found)
    if not labels:
        raise ValueError("a RoI probe needs boxes, got images without any")
    return Features({name: torch.cat(part) for name, part in parts.items()}, torch.cat(labels))


def roi_probe(train: Features, test: Features) -> dict[str, dict[str, float]]:
    """Measure every level by a linear classifier of boxes.

    Args:
        train: what the classifier is made of.
        test: what it is measured on.

    Returns:
        level -> ``accuracy`` over boxes, and ``balanced``, its mean over classes, in [0, 1].
    """
    scores = {}
    for name, level in train.levels.items():
        predictions = linear_predictions(level, train.labels, test.levels[name])
        scores[name] = {
            "accuracy": accuracy(predictions, test.labels),
            "balanced": balanced_accuracy(predictions, test.labels),
        }
    return scores


def _rois(batch: ImageBatch) -> tuple[Tensor, Tensor]:
    """Return ``(K, 5)``, the index of the image and the box, and ``(K,)`` labels of all objects of a batch."""
    rois, labels = [], []
    for index, target in enumerate(batch.targets):
        boxes = target.boxes[~target.crowd].float()
        rois.append(torch.cat([boxes.new_full((len(boxes), 1), index), boxes], dim=1))
        labels.append(target.labels[~target.crowd])
    return torch.cat(rois), torch.cat(labels)

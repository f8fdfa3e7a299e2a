"""Whether a file gives what the network gives that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from visionlab.export.graphs import BackboneGraph, DetectorGraph, example
from visionlab.models.static_detector import DIVISOR
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import Detections, ImageBatch

BOX_TOLERANCE = 1e-3  # in pixels
SCORE_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-3  # of the largest value of a level

Run = Callable[[Tensor, Tensor], Sequence[Tensor]]


def check_detector(run: Run, detector: TwoStageDetector, graph: DetectorGraph) -> str:
    """Compare detections of batches of one and two images, upright and across, with the detector's own.

    Where scores or overlaps are so close that rounding decides, the detector itself finds something else once its
    BatchNorm is not folded, as in the graph. Such an image shows nothing about the file, and is left out.

    Args:
        run: the file as a function of pixels and sizes.
        detector: what it was made of.
        graph: likewise.

    Returns:
        What was compared, for people.

    Raises:
        ValueError: they disagree, or every image was left out.
    """
    least, most = detector.head.settings.score_threshold, detector.head.settings.max_detections
    images = detections = left_out = 0
    for inputs in _batches(graph):
        expected, found = detect(detector, *inputs), _by_image(run(*inputs))
        for i, (own, theirs) in enumerate(zip(expected, found, strict=True)):
            problem = difference(own, theirs, least, most)
            if not problem:
                images, detections = images + 1, detections + len(own)
                continue
            with torch.no_grad():
                unfolded = _by_image(graph.static(*inputs))[i]
            if not difference(own, unfolded, least, most):
                raise ValueError(f"the exported graph disagrees with the detector, so nothing is written: {problem}")
            left_out += 1
    if not images:
        raise ValueError(
            "in every image it was tried on rounding changes what the detector finds, so nothing is written"
        )
    without = f" ({left_out} left out, where rounding changes what the detector finds)" if left_out else ""
    return f"{detections} detections in {images} images agree with the detector's own{without}"


def check_backbone(run: Run, graph: BackboneGraph) -> str:
    """Compare levels of batches of one and two images with the backbone's own; see ``check_detector``."""
    backbone = graph.backbone
    for pixels, sizes in _batches(graph):
        with torch.no_grad():
            expected = backbone(backbone.normalize(pixels, [tuple(size) for size in sizes.tolist()]))
        for name, theirs, ours in zip(graph.outputs, expected, run(pixels, sizes), strict=True):
            largest = float(theirs.abs().max())
            off = float((theirs - ours).abs().max()) if theirs.shape == ours.shape else float("inf")
            if not off <= FEATURE_TOLERANCE * max(largest, 1e-6):
                raise ValueError(
                    "the exported graph disagrees with the backbone, so nothing is written: "
                    f"{name}: differs by {off:.3g} where the largest value is {largest:.3g}"
                )
    return f"{len(graph.outputs)} levels agree with the backbone's own"


def difference(expected: Detections, found: Detections, least: float, most: int) -> str:
    """Say how detections of one image differ, if they do.

    A detection may be absent whose score is within the tolerance of where the list ends: of the least score, or of the
    last one of a full list. Two may change places if their scores are as close.

    Args:
        expected: of the detector, best first.
        found: of the file, best first.
        least: detections score more than this.
        most: the most detections of an image.

    Returns:
        One line, or nothing where they are the same.
    """
    near = _near(expected, found)
    for ours, theirs, pairs, what in (
        (expected, found, near, "is absent"),
        (found, expected, near.T, "is not its own"),
    ):
        lowest = max(least, float(theirs.scores.min())) if len(theirs) == most else least
        surplus = ~pairs.any(1) & (ours.scores > lowest + SCORE_TOLERANCE)
        if surplus.any():
            row = int(surplus.nonzero()[0])
            box = [round(side, 3) for side in ours.boxes[row].tolist()]
            return f"the detection of label {int(ours.labels[row])}, score {float(ours.scores[row]):.4f}, {box} {what}"
    rows = near.any(1).nonzero()[:, 0]
    if not len(rows):
        return ""
    places = near[rows].int().argmax(1)
    scores = expected.scores[rows]
    swapped = (scores[:, None] - scores > SCORE_TOLERANCE) & (places[:, None] > places)
    if swapped.any():
        first, second = (int(rows[index]) for index in swapped.nonzero()[0])
        return f"detections {first} and {second} of the detector are in another order"
    return ""


def detect(detector: TwoStageDetector, pixels: Tensor, sizes: Tensor) -> list[Detections]:
    """Return what a detector finds in a batch that need not be padded."""
    right, below = -pixels.shape[3] % DIVISOR, -pixels.shape[2] % DIVISOR
    padded = torch.nn.functional.pad(pixels, (0, right, 0, below))
    return detector.detect(ImageBatch(padded, [(height, width) for height, width in sizes.tolist()]))


def _batches(graph: Any) -> list[tuple[Tensor, Tensor]]:
    first, second = graph.limits.sides()
    return [example(graph.limits, 2, first), example(graph.limits, 1, second)]


def _by_image(answer: Sequence[Tensor]) -> list[Detections]:
    """Return what a file, or ``StaticDetector``, answered, without the rows that are no detections."""
    *rows, counts = answer
    return [Detections(*(part[i, :count] for part in rows)) for i, count in enumerate(counts.tolist())]


def _near(expected: Detections, found: Detections) -> Tensor:
    """Return which pairs of detections are the same, each at most once."""
    boxes = (expected.boxes[:, None] - found.boxes).abs().amax(-1) <= BOX_TOLERANCE
    scores = (expected.scores[:, None] - found.scores).abs() <= SCORE_TOLERANCE
    return boxes & scores & (expected.labels[:, None] == found.labels)

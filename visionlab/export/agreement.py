"""Whether a file gives what the network gives that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionlab.data.samples import collate_images
from visionlab.data.transforms import EvaluationResize
from visionlab.export.graphs import SCORE_THRESHOLD, BackboneGraph, DetectorGraph, example
from visionlab.models.static_detector import DIVISOR
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import Detections, ImageBatch

BOX_TOLERANCE = 1e-3  # in pixels
SCORE_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-3  # of the largest value of a level

RESIZED_PIXEL_TOLERANCE = 1  # of 255
BEST = 10  # boxes of an image, where those of low scores are compared as well

Run = Callable[[Tensor, Tensor], Sequence[Tensor]]
Open = Callable[[Mapping[str, float]], Run]


def check_detector(
    open: Open, detector: TwoStageDetector, graph: DetectorGraph, images: Iterable[tuple[Tensor, Tensor]] = ()
) -> str:
    """Compare detections of batches of one and two synthetic images, and of others, with the detector's own.

    If it finds nothing in any, the best boxes of the synthetic images are compared, however low their scores are.

    Where scores or overlaps are so close that rounding decides, the detector itself finds something else once its
    BatchNorm is not folded, as in the graph. Such an image shows nothing about the file, and is left out.

    Args:
        open: the file, with other values for some of its constants, as a function of pixels and sizes.
        detector: what it was made of.
        graph: likewise.
        images: further batches.

    Returns:
        What was compared, for people.

    Raises:
        ValueError: they disagree, or every image was left out.
    """
    settings, run = detector.head.settings, open({})
    pair = detector, graph
    synthetic = _compare(run, *pair, _batches(graph), settings.score_threshold, settings.max_detections)
    given = _compare(run, *pair, images, settings.score_threshold, settings.max_detections)
    if not synthetic.images + given.images:
        raise ValueError(
            "in every image it was tried on rounding changes what the detector finds, so nothing is written; "
            "name others by --images"
        )
    left_out = synthetic.left_out + given.left_out
    without = f" ({left_out} left out, where rounding changes what the detector finds)" if left_out else ""
    parts = {"synthetic images": synthetic}
    if given.images + given.left_out:
        parts["of --images"] = given
    if synthetic.detections + given.detections:
        counts = " and ".join(f"{part.detections} in {part.images} {whose}" for whose, part in parts.items())
        return f"detections agree with the detector's own: {counts}{without}"
    seen = " and ".join(f"{part.images} {whose}" for whose, part in parts.items())
    with _score_threshold(*pair, 0.0):
        low = _compare(open({SCORE_THRESHOLD: 0.0}), *pair, _batches(graph), 0.0, BEST)
    also = f"; only {low.detections} boxes of lower scores were, and agree" if low.detections else ""
    return (
        f"no detection was compared, as the detector finds nothing in {seen}{without}{also}; "
        "name images with objects that it finds by --images"
    )


@dataclass
class _Compared:
    """How many images agree, what was found in them, and how many images were left out."""

    images: int = 0
    detections: int = 0
    left_out: int = 0


def _compare(
    run: Run,
    detector: TwoStageDetector,
    graph: DetectorGraph,
    batches: Iterable[tuple[Tensor, Tensor]],
    least: float,
    most: int,
) -> _Compared:
    """Compare the best ``most`` detections of each image, of scores above ``least``."""
    compared = _Compared()
    for inputs in batches:
        expected, found = detect(detector, *inputs), _by_image(run(*inputs))
        for i, (own, theirs) in enumerate(zip(expected, found, strict=True)):
            own = _first(own, most)
            problem = difference(own, _first(theirs, most), least, most)
            if not problem:
                compared.images, compared.detections = compared.images + 1, compared.detections + len(own)
                continue
            with torch.no_grad():
                unfolded = _by_image(graph.static(*inputs))[i]
            if not difference(own, _first(unfolded, most), least, most):
                raise ValueError(f"the exported graph disagrees with the detector, so nothing is written: {problem}")
            compared.left_out += 1
    return compared


@contextmanager
def _score_threshold(detector: TwoStageDetector, graph: DetectorGraph, value: float) -> Iterator[None]:
    """Let a detector and its graph find what scores more than this, for a while."""
    settings = detector.head.settings
    detector.head.settings = replace(settings, score_threshold=value)
    graph.static.score_threshold.fill_(value)
    try:
        yield
    finally:
        detector.head.settings = settings
        graph.static.score_threshold.fill_(settings.score_threshold)


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


def check_resize(front: Callable[..., Any], run: Callable[..., Any], plain: Run, resize: EvaluationResize) -> str:
    """Compare the pixels that a file makes of images with the evaluation's own, and what it finds with the plain one.

    Args:
        front: images as pixels and sizes, as the file makes them.
        run: the file, with a score threshold of 0, so that there is something to compare.
        plain: the file of pixels and sizes, likewise.
        resize: the evaluation's own.

    Returns:
        What was compared, for people.
    """
    generator = np.random.default_rng(0)
    largest = 0
    for height, width in ((97, 160), (301, 187)):
        blocks = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        image = np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width]
        pixels, sizes = front(torch.from_numpy(image[None].copy()))[:2]
        own = collate_images([resize.apply_to_image(image)], divisor=1)
        if pixels.shape != own.pixels.shape or sizes.tolist() != [list(own.sizes[0])]:
            raise ValueError(
                f"the exported resize disagrees, so nothing is written: expected {own.sizes[0]}, got {sizes.tolist()}"
            )
        largest = max(largest, int((pixels.int() - own.pixels.int()).abs().max()))
        if largest > RESIZED_PIXEL_TOLERANCE:
            raise ValueError(f"the exported resize disagrees by {largest} of 255, so nothing is written")
        expected, found = (
            _first(_by_image(answer)[0], BEST)
            for answer in (plain(pixels, sizes), run(torch.from_numpy(image[None].copy())))
        )
        scale = torch.tensor([width / int(sizes[0, 1]), height / int(sizes[0, 0])] * 2)
        expected = Detections(expected.boxes * scale, expected.scores, expected.labels)
        problem = difference(expected, found, 0.0, BEST)
        if problem:
            raise ValueError(f"the exported resize changes detections, so nothing is written: {problem}")
    return f"resized pixels differ by at most {largest} of 255"


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


def _first(detections: Detections, most: int) -> Detections:
    return Detections(detections.boxes[:most], detections.scores[:most], detections.labels[:most])


def _near(expected: Detections, found: Detections) -> Tensor:
    """Return which pairs of detections are the same, each at most once."""
    boxes = (expected.boxes[:, None] - found.boxes).abs().amax(-1) <= BOX_TOLERANCE
    scores = (expected.scores[:, None] - found.scores).abs() <= SCORE_TOLERANCE
    return boxes & scores & (expected.labels[:, None] == found.labels)

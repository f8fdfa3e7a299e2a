"""A trained detector as a function of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from visionlab.checks import check_at_least
from visionlab.data.images import read_image, read_image_sizes
from visionlab.data.samples import collate_images
from visionlab.data.transforms import EvaluationResize, fit
from visionlab.eval.several_views import SeveralViews
from visionlab.models.detector import read_detector
from visionlab.models.merged_views import detect_in_views
from visionlab.models.sampling_places import SamplingPlaces, sampling_places
from visionlab.models.static_detector import DIVISOR
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import Detections

Images = Sequence[str | Path | np.ndarray]
MOST_PIXELS = 64_000_000  # of the images of a batch, as they are read


class Predictor:
    """Detects objects in images of any size.

    Args:
        detector: a trained detector.
        resize: brings images to the size the detector was trained at.
        device: where to compute.
        batch_size: the most images that go through the detector together.
        augment: the views of each image that are looked at; by default the image as it is.
    """

    def __init__(
        self,
        detector: TwoStageDetector,
        resize: EvaluationResize,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 8,
        augment: SeveralViews | None = None,
    ):
        check_at_least(1, batch_size=batch_size)
        augment = augment or SeveralViews()
        self.resizes, self.flip = resize.at(augment.sizes), augment.flip
        self.detector = detector.to(device).eval()
        self.resize, self.device, self.batch_size = resize, torch.device(device), batch_size

    @property
    def classes(self) -> list[str]:
        """The name of each label."""
        return self.detector.classes

    def __call__(self, images: Images) -> list[Detections]:
        """Return the objects in each image, best first, in pixels of the image as it was given.

        Args:
            images: paths of image files, or ``(H, W, 3)`` uint8 RGB arrays.

        Raises:
            ValueError: a file cannot be read, or an array is no such image.
        """
        if isinstance(images, (str, Path)):
            raise ValueError(f"images: expected a list, got the single path {images}; put it into a list")
        found: dict[int, Detections] = {}
        for rows in self.batches(_sizes(images)):
            found |= zip(rows, self._detect([_pixels(images[row]) for row in rows]), strict=True)
        return [found[row] for row in range(len(images))]

    def sampling_places(self, image: np.ndarray, detections: Detections) -> SamplingPlaces:
        """Say where the deformable parts of the detector look for objects, in pixels of the image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            detections: of this image.
        """
        batch = collate_images([self.resize.apply_to_image(_pixels(image))], divisor=DIVISOR).to(self.device)
        [(height, width)] = batch.sizes
        y, x = height / image.shape[0], width / image.shape[1]
        boxes = detections.boxes * detections.boxes.new_tensor([x, y, x, y])
        return sampling_places(self.detector, batch, boxes, detections.labels).scaled(1 / x, 1 / y)

    def batches(self, sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Say which images go through the detector together.

        Those of a batch are padded to one shape, which is also that of each alone: padding is not quite without
        influence on what a convolution sees, so that only then the detections do not depend on the other images.

        Args:
            sizes: ``(height, width)`` of each image as it is given.

        Returns:
            Rows of ``sizes``, each once. A batch holds at most ``batch_size`` images, and no more than fit in memory.
        """
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for row, size in enumerate(sizes):
            sides = [side for resize in self.resizes for side in fit(*size, resize.short_side, resize.max_size)]
            by_shape.setdefault(tuple(-(-side // DIVISOR) for side in sides), []).append(row)
        return [batch for rows in by_shape.values() for batch in self._split(rows, sizes)]

    def _split(self, rows: list[int], sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        batch: list[int] = []
        pixels = 0
        for row in rows:
            own = sizes[row][0] * sizes[row][1]
            if batch and (len(batch) == self.batch_size or pixels + own > MOST_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append(row)
            pixels += own
        yield batch

    def _detect(self, images: list[np.ndarray]) -> list[Detections]:
        batches = [
            collate_images([resize.apply_to_image(image) for image in images], divisor=DIVISOR).to(self.device)
            for resize in self.resizes
        ]
        detections = detect_in_views(self.detector, batches, flip=self.flip)
        return [
            _rescaled(part.to("cpu"), size, image.shape[:2])
            for part, size, image in zip(detections, batches[0].sizes, images, strict=True)
        ]


def load_detector(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    batch_size: int = 8,
    augment: SeveralViews | None = None,
) -> Predictor:
    """Load a detector that a run has trained.

    Args:
        path: ``detector.safetensors``, or the run folder it lies in.
        device: where to compute.
        batch_size: the most images that go through the detector together.
        augment: the views of each image that are looked at, ``SeveralViews(flip=True, sizes=[600, 800])``; by default
            the image as it is.

    Returns:
        A function of a list of images that returns a list of ``Detections``; ``classes`` names their labels.

    Raises:
        ValueError: there is no such file, it is no detector, or does not say at which size it was trained.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "detector.safetensors"
    detector = read_detector(path)
    if "resize" not in detector.provenance:
        raise ValueError(f"{path}: expected the image size the detector was trained at (provenance 'resize'), got none")
    resize = EvaluationResize(**detector.provenance["resize"])
    return Predictor(detector, resize, device, batch_size=batch_size, augment=augment)


def _sizes(images: Images) -> list[tuple[int, int]]:
    """Return ``(height, width)`` of each image, of files from their headers."""
    sizes = read_image_sizes([str(image) for image in images if not isinstance(image, np.ndarray)])
    of_files = iter(sizes)
    found = []
    for image in images:
        size = _pixels(image).shape[:2] if isinstance(image, np.ndarray) else next(of_files)
        if isinstance(size, ValueError):
            raise size
        found.append(size)
    return found


def _pixels(image: str | Path | np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: expected a (H, W, 3) uint8 RGB array, got {image.shape} {image.dtype}")
    return image


def _rescaled(detections: Detections, size: tuple[int, int], original: tuple[int, int]) -> Detections:
    scale = torch.tensor([original[1] / size[1], original[0] / size[0]] * 2)
    return Detections(detections.boxes * scale, detections.scores, detections.labels)

"""A trained detector as a function of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from visionlab.data.images import read_image
from visionlab.data.samples import collate_images
from visionlab.data.transforms import EvaluationResize
from visionlab.models.detector import read_detector
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import Detections

Images = Sequence[str | Path | np.ndarray]


class Predictor:
    """Detects objects in images of any size.

    Args:
        detector: a trained detector.
        resize: brings images to the size the detector was trained at.
        device: where to compute.
        batch_size: how many images go through the detector together.
    """

    def __init__(
        self,
        detector: TwoStageDetector,
        resize: EvaluationResize,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 8,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
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
            raise ValueError(f"expected a list of images, got the single path {images}; put it into a list")
        found = []
        for start in range(0, len(images), self.batch_size):
            found += self._detect([_pixels(image) for image in images[start : start + self.batch_size]])
        return found

    def _detect(self, images: list[np.ndarray]) -> list[Detections]:
        batch = collate_images([self.resize.apply_to_image(image) for image in images])
        detections = self.detector.detect(batch.to(self.device))
        return [
            _rescaled(part.to("cpu"), size, image.shape[:2])
            for part, size, image in zip(detections, batch.sizes, images, strict=True)
        ]


def load_detector(path: str | Path, device: torch.device | str = "cpu", *, batch_size: int = 8) -> Predictor:
    """Load a detector that a run has trained.

    Args:
        path: ``detector.safetensors``, or the run folder it lies in.
        device: where to compute.
        batch_size: how many images go through the detector together.

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
    return Predictor(detector, EvaluationResize(**detector.provenance["resize"]), device, batch_size=batch_size)


def _pixels(image: str | Path | np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected a (H, W, 3) uint8 RGB array, got {image.shape} {image.dtype}")
    return image


def _rescaled(detections: Detections, size: tuple[int, int], original: tuple[int, int]) -> Detections:
    scale = torch.tensor([original[1] / size[1], original[0] / size[0]] * 2)
    return Detections(detections.boxes * scale, detections.scores, detections.labels)

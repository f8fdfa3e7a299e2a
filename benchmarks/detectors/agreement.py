"""What half precision costs: the AP of one trained detector in both."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from visionlab.config import build
from visionlab.config.load import load
from visionlab.data.transforms import EvaluationResize
from visionlab.models.detector import read_detector
from visionlab.tasks.detect import detect_all


def average_precisions(folder: Path) -> dict[str, float]:
    """Return the AP of a run's detector on its validation images, by precision.

    Args:
        folder: a run folder with ``config.yaml`` and ``detector.safetensors``.

    Raises:
        ValueError: the run has no validation images.
    """
    run, detector, device = load(folder / "config.yaml"), read_detector(folder), torch.device("cpu")
    with tempfile.TemporaryDirectory() as scratch:
        data = build.labelled_data(run, Path(scratch), detector.classes)
        if data.val is None:
            raise ValueError(f"{folder}: expected a run with validation images")
        resize = EvaluationResize(**detector.provenance["resize"])
        found = {}
        for precision, narrow in (("fp32", False), ("bf16", True)):
            evaluator = build.evaluator(run, data)
            loader = build.validation_loader(run, data, resize, device)
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                detect_all(detector, loader, evaluator, device, pictures=0)
            found[precision] = evaluator.metrics().summary()["AP"] or 0.0
    return found

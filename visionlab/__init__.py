"""From unlabelled images to a good detector: self-supervised pretraining, two-stage detectors, and their operators."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_detector"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: visionlab.ops must not need what a detector needs.
    if name == "load_detector":
        from visionlab.inference import load_detector

        return load_detector
    raise AttributeError(f"module 'visionlab' has no attribute '{name}'")

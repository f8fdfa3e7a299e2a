"""Weights of torchvision's ``fasterrcnn_resnet50_fpn`` for our detector, and ours for theirs."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from visionlab.models.detector import TwoStageDetector, build_detector

# Theirs, ours. The part in brackets is missing in files written before torchvision 0.13, their COCO_V1 among them.
_NAMES = (
    ("backbone.body.", "backbone.model."),
    ("backbone.fpn.inner_blocks.#[.0].", "neck.lateral.#."),
    ("backbone.fpn.layer_blocks.#[.0].", "neck.output.#."),
    ("rpn.head.conv[.0.0].", "rpn.conv."),
    ("rpn.head.cls_logits.", "rpn.objectness."),
    ("rpn.head.bbox_pred.", "rpn.offsets."),
    ("roi_heads.box_head.fc6.", "head.fc1."),
    ("roi_heads.box_head.fc7.", "head.fc2."),
    ("roi_heads.box_predictor.cls_score.", "head.classes."),
    ("roi_heads.box_predictor.bbox_pred.", "head.offsets."),
)
# By these a file is told to be of such a model.
KNOWN_BY = ("rpn.head.bbox_pred.weight", "roi_heads.box_predictor.cls_score.weight")
# What such a model is built with here, where defaults differ.
SETTINGS: dict[str, Any] = {"backbone": {"name": "resnet50", "norm": "frozen"}, "rpn": {"anchor_steps": "image"}}

_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids that COCO gives to no class
_COCO = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop
    sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack,
    umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball
    glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana,
    apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
    refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
_NAMES_OF_IDS = iter(" ".join(_COCO.split()).split(", "))
COCO_CLASSES = [None if number in _GAPS else next(_NAMES_OF_IDS) for number in range(1, 91)]
"""The class of each label of torchvision's COCO weights: COCO's ids, less 1. None where there is none."""


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our names and rows of a torchvision Faster R-CNN's weights.

    torchvision's row 0 is background and its label i is our label i - 1; our background is the last row of the class
    scores. The box offsets it keeps for background are never used and are dropped.

    Args:
        state: ``state_dict()`` of a ``fasterrcnn_resnet50_fpn``.

    Returns:
        What ``TwoStageDetector.load_state_dict`` takes.

    Raises:
        ValueError: a name that such a model does not have.
    """
    ours = {_rename(name, theirs_to_ours=True): value for name, value in state.items()}
    for name, value in ours.items():
        if name.startswith("head.classes."):
            ours[name] = value.roll(-1, 0)
        elif name.startswith("head.offsets."):
            ours[name] = value[4:]
    return ours


def to_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's names and rows of our detector's weights; ``from_torchvision`` undoes it.

    Args:
        state: ``state_dict()`` of a ``TwoStageDetector`` with a torchvision-like ResNet, FPN and ``FastRCNNHead``.

    Returns:
        What ``fasterrcnn_resnet50_fpn(...).load_state_dict`` takes; the unused box offsets of background are 0.

    Raises:
        ValueError: a name for which torchvision's model has no place, a part of it that is missing, or boxes that all
            classes share.
    """
    theirs = {_rename(name, theirs_to_ours=False): value for name, value in state.items()}
    for _, part in _NAMES:
        if not any(name.startswith(part.partition("#")[0]) for name in state):
            raise ValueError(f"state: expected the weights of a Faster R-CNN with ResNet and FPN, got none of '{part}'")
    if len(state["head.offsets.bias"]) != 4 * (len(state["head.classes.bias"]) - 1):
        raise ValueError("state: expected boxes of each class, which torchvision's model has, got boxes they share")
    for name, value in theirs.items():
        if "box_predictor.cls_score." in name:
            theirs[name] = value.roll(1, 0)
        elif "box_predictor.bbox_pred." in name:
            theirs[name] = torch.cat((torch.zeros_like(value[:4]), value))
    return theirs


def build_from_torchvision(
    state: dict[str, Tensor], classes: list[str], *, norm_eps: float | None = None
) -> TwoStageDetector:
    """Build a detector that computes what torchvision's ``fasterrcnn_resnet50_fpn`` with these weights computes.

    Args:
        state: its ``state_dict()``.
        classes: the name of each label, without background: ``weights.meta["categories"][1:]``.
        norm_eps: epsilon of its BatchNorm layers if not 1e-5; 0 for torchvision's COCO_V1 weights.

    Returns:
        The detector, in evaluation mode, with frozen BatchNorm.

    Raises:
        ValueError: the weights are not those of such a model with so many classes.
    """
    detector = build_detector(classes, **SETTINGS, norm_eps=norm_eps)
    try:
        detector.load_state_dict(from_torchvision(state))
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"state: expected a fasterrcnn_resnet50_fpn of {len(classes)} classes and background: {detail}"
        ) from None
    return detector.eval()


def _rename(name: str, theirs_to_ours: bool) -> str:
    for theirs, ours in _NAMES:
        if theirs_to_ours:
            pattern = re.escape(theirs).replace(r"\#", r"(\d+)").replace(r"\[", "(?:").replace(r"\]", ")?")
            target = ours.replace("#", r"\1")
        else:
            pattern = re.escape(ours).replace(r"\#", r"(\d+)")
            target = re.sub(r"[\[\]]", "", theirs).replace("#", r"\1")
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", target, name)
    raise ValueError(f"state: expected the weights of a Faster R-CNN with ResNet and FPN, got one named '{name}'")

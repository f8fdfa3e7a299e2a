"""A whole detector on one page: built from settings, kept in one file, built again from it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from visionlab.choices import OneOf, choices_of
from visionlab.models.backbone import Backbone
from visionlab.models.encoder import Normalization
from visionlab.models.fast_rcnn_head import FastRCNNHead
from visionlab.models.fpn import FPN
from visionlab.models.neck import Neck
from visionlab.models.res5_head import Res5Head
from visionlab.models.rfcn_head import RFCNHead
from visionlab.models.roi_head import RoIHead
from visionlab.models.roi_stage import check_roi_stage
from visionlab.models.rpn import RPN
from visionlab.models.single_level import SingleLevel
from visionlab.models.tensor_file import read_tensors, write_tensors
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.models.vit_pyramid import SimpleFeaturePyramid
from visionlab.renames import current_settings

NECKS: dict[str, type[Neck]] = {"fpn": FPN, "simple_pyramid": SimpleFeaturePyramid, "single_level": SingleLevel}
HEADS: dict[str, type[RoIHead]] = {"fast_rcnn": FastRCNNHead, "rfcn": RFCNHead, "res5": Res5Head}
NECK, HEAD = OneOf(NECKS, Neck), OneOf(HEADS, RoIHead)
DEFAULT_NECK, DEFAULT_HEAD = "fpn", "fast_rcnn"
KIND = "visionlab detector"


def build_detector(
    classes: list[str],
    *,
    backbone: dict[str, Any] | None = None,
    neck: dict[str, Any] | None = None,
    rpn: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    norm_eps: float | None = None,
) -> TwoStageDetector:
    """Build a two-stage detector, by default Faster R-CNN with ResNet-50 and FPN; its weights are random.

    Args:
        classes: the name of each label.
        backbone: settings of ``Backbone``.
        neck: settings of the neck that ``name`` chooses from ``NECKS``, or that is called ``package.module:Class``: by
            default of ``FPN``; a plain vision transformer needs "simple_pyramid", a
            detector of one level "single_level".
        rpn: settings of ``RPN``.
        head: settings of the head that ``name`` chooses likewise from ``HEADS``, by default of ``FastRCNNHead``; also
            by the names that they had in earlier versions.
        norm_eps: epsilon of the backbone's BatchNorm layers; by default they keep theirs.

    Returns:
        The detector, whose ``settings`` are those given and the defaults of those not given.

    Raises:
        ValueError: there are no classes, or a part refuses its settings.

    Source: Lin et al., Feature Pyramid Networks, 2016, arXiv:1612.03144.
    """
    if not classes:
        raise ValueError("classes: expected the name of at least one class, got none")
    neck = _complete(NECK, neck or {}, DEFAULT_NECK)
    head = _complete(HEAD, head or {}, DEFAULT_HEAD)
    body = Backbone(**backbone or {})
    check_roi_stage(HEAD.find(head["name"]), head["name"], body.roi_stage is not None)
    stage = () if body.roi_stage is None else (body.roi_stage,)
    pyramid = NECK.build("neck", neck, body.channels, body.strides)
    detector = TwoStageDetector(
        backbone=body,
        neck=pyramid,
        rpn=RPN(*pyramid.width_and_strides(pyramid.proposal_levels), **rpn or {}),
        head=HEAD.build("head", head, *pyramid.width_and_strides(pyramid.pooled_levels), len(classes), *stage),
        norm_eps=norm_eps,
    )
    detector.classes = list(classes)
    settings = {
        "backbone": body.settings,
        "neck": neck,
        "rpn": _with_defaults(RPN, rpn or {}),
        "head": head,
        "norm_eps": norm_eps,
    }
    detector.settings = json.loads(json.dumps(settings))  # lists for tuples, as they come back from a file
    return detector


def save_detector(detector: TwoStageDetector, path: str | Path, *, provenance: dict[str, Any] | None = None) -> None:
    """Write a detector to a safetensors file, all or nothing.

    Args:
        detector: made by ``build_detector`` or ``read_detector``.
        path: the file; its folder must exist. A file that is there is replaced in one step.
        provenance: plain JSON to keep with the weights, for example the sizes that images were resized to.

    Raises:
        ValueError: the detector was put together by hand, so nothing says how to build it again.
    """
    if not detector.settings:
        raise ValueError(f"{path}: expected a detector made by build_detector, this one has no settings to save")
    normalization = detector.backbone.normalization
    description = {
        "classes": json.dumps(detector.classes),
        "normalization": json.dumps({"mean": normalization.mean, "std": normalization.std}),
        "settings": json.dumps(detector.settings),
        "provenance": json.dumps(provenance or {}),
    }
    write_tensors(detector.state_dict(), path, KIND, description)


def read_detector(path: str | Path) -> TwoStageDetector:
    """Build the detector that a file holds.

    Args:
        path: what ``save_detector`` wrote, or the run folder it lies in.

    Returns:
        The detector, on the CPU, in evaluation mode; ``provenance`` holds what was kept with the weights.

    Raises:
        ValueError: there is no such file, it is no detector, a newer version wrote it, it is damaged, or it has a part
            of one's own that cannot be imported.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "detector.safetensors"
    tensors, description = read_tensors(path)
    if description.get("kind") != KIND:
        raise ValueError(f"{path}: expected a file written by save_detector, it does not say it is a detector")
    try:
        detector = build_detector(json.loads(description["classes"]), **json.loads(description["settings"]))
    except ValueError as error:  # it may have parts of a package that is not there
        raise ValueError(f"{path}: the detector cannot be built again: {error}") from error
    detector.backbone.normalization = Normalization(**json.loads(description["normalization"]))
    detector.provenance = json.loads(description["provenance"])
    expected = {name: tensor.shape for name, tensor in detector.state_dict().items()}
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors or expected.get(name) != tensors[name].shape
    )
    if wrong:
        raise ValueError(f"{path}: {len(wrong)} weights do not fit the file's own settings, the first is '{wrong[0]}'")
    detector.load_state_dict(tensors)
    return detector.eval()


def _complete(choice: OneOf, given: dict[str, Any], default: str) -> dict[str, Any]:
    """Return all settings of the part that some choose, ``name`` first."""
    name = given.get("name", default)
    return {"name": name} | _with_defaults(choice.find(name), {key: given[key] for key in given if key != "name"})


def _with_defaults(part: Callable[..., nn.Module], given: dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a part, so that a saved detector does not change when a default does."""
    parameters = inspect.signature(part).parameters.values()
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | current_settings(part, given)
    for name, choice in choices_of(part).items():
        if settings[name] is not None:
            settings[name] = choice.complete(settings[name])
    return settings

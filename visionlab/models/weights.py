"""Backbone weights in files: written in timm's names with how they came about, read from anywhere and accounted for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visionlab.models.backbone import Backbone
from visionlab.models.encoder import Normalization
from visionlab.models.tensor_file import read_tensors, write_tensors
from visionlab.models.transfer import TransferReport, some
from visionlab.models.weight_files import best_candidate, one_line, read_weights

KIND = "visionlab backbone"
# BatchNorm counts its batches; files from before that lack the counter, and nothing is computed from it.
_COUNTER = "num_batches_tracked"
# What only a detector's file holds, in our names and in torchvision's.
_DETECTOR_PARTS = {"rpn", "roi_heads"}
_STATISTICS = ("running_mean", "running_var", _COUNTER)


def save_backbone(backbone: Backbone, path: str | Path, *, provenance: Mapping[str, Any]) -> None:
    """Write a backbone's weights, in the names of ``timm.create_model(name, num_classes=0)``, and their origin.

    Args:
        backbone: what to write.
        path: the safetensors file, replaced in one step; its folder must exist.
        provenance: how the weights came about, plain JSON: ``method``, ``steps``, ``images`` (how many) and the like.
    """
    tensors = backbone.model.state_dict()
    description = {
        "name": backbone.name,
        "normalization": {"mean": backbone.normalization.mean, "std": backbone.normalization.std},
        "norm": backbone.norm,
        "settings": backbone.settings,
        "absent": [name for name in backbone.timm_names if name not in tensors],
    }
    taken = description.keys() & provenance.keys()
    if taken:
        raise ValueError(f"{path}: provenance '{min(taken)}' is said by the backbone itself")
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in provenance.items()}
    texts |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    write_tensors(tensors, path, KIND, texts)


def read_backbone(path: str | Path) -> Backbone:
    """Build the backbone that a file holds, and load it.

    Args:
        path: what ``save_backbone`` wrote, or the run folder it lies in.

    Raises:
        ValueError: there is no such file, or it is none of these.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "backbone.safetensors"
    _, description = read_tensors(path)
    if description.get("kind") != KIND:
        raise ValueError(f"{path}: expected a file written by save_backbone, it does not say it is a backbone")
    backbone = Backbone(**json.loads(description["settings"]))
    load_weights(backbone, path, min_matched=1.0)
    return backbone.eval()


def load_weights(backbone: Backbone, path: str | Path, *, min_matched: float = 0.95) -> TransferReport:
    """Load weights into a backbone, or refuse and change nothing.

    Takes what ``save_backbone`` wrote, and files of timm, torchvision and others (``.safetensors``, ``.pth``) in
    timm's names: a prefix before the names (``module.``, ``backbone.``, ``module.encoder_q.``) and a dictionary around
    them (``state_dict``, ``model``, ``teacher``) are found by what fits best.

    Args:
        backbone: what to load into.
        path: the file, or ``timm`` for the weights that timm offers for this model, which timm downloads.
        min_matched: the least share of the backbone's tensors, and of its elements, that must be loaded, in [0, 1].

    Returns:
        What became of every tensor; its text is one line to print.

    Raises:
        ValueError: too little fits, the file is for another model or cannot be read without running code from it.
    """
    if not 0 <= min_matched <= 1:
        raise ValueError(f"min_matched: expected a share in [0, 1], got {min_matched}")
    wanted = backbone.model.state_dict()
    candidates, description = (_timm_weights(backbone), {}) if str(path) == "timm" else read_weights(path)
    _check_origin(backbone, path, description)
    label, prefix, tensors = best_candidate(candidates, wanted)
    report, loaded = compare_backbone(backbone, tensors, wanted)
    report.source, report.prefix = str(path), prefix
    if prefix or label:
        report.notes.append(f"names taken from '{label}{prefix}'")
    if any(_DETECTOR_PARTS & set(name.split(".")) for name in tensors):
        report.notes.append(
            "the file holds a whole detector and only its backbone was taken, neck and heads keep their values; "
            f"detector: {path} takes them too"
        )
    if report.fraction < min_matched:
        raise ValueError(f"{report}; expected at least {min_matched:.0%} matched for {backbone.name}")
    backbone.model.load_state_dict(loaded, strict=False)
    report.notes.append(_take_normalization(backbone, description))
    return report


def compare_backbone(
    backbone: Backbone, tensors: dict[str, Tensor], wanted: dict[str, Tensor]
) -> tuple[TransferReport, dict[str, Tensor]]:
    """Sort all names of file and backbone; also return what to load."""
    report, loaded = TransferReport(""), {}
    for name, value in wanted.items():
        if name not in tensors:
            if name not in backbone.timm_names:
                report.new.append(name)
            elif not name.endswith(_COUNTER):
                report.missing.append(name)
            continue
        given = tensors[name]
        if given.shape != value.shape and name.endswith("pos_embed"):
            given = _resize_positions(backbone.model, given, value)
            if given.shape == value.shape:
                report.resized.append(name)
        if given.shape != value.shape:
            report.mismatched.append(f"{name} {tuple(given.shape)} for {tuple(value.shape)}")
            continue
        loaded[name] = given
        if not name.endswith(_COUNTER):
            report.matched.append(name)
    for name in tensors.keys() - wanted.keys():
        (report.expected if _is_expected(backbone, name) else report.unexpected).append(name)
    report.expected.sort()
    report.unexpected.sort()
    if report.resized:
        report.notes.append(f"interpolated {some(report.resized)}")
    report.matched_elements = sum(wanted[name].numel() for name in report.matched)
    counted = wanted.keys() - set(report.new)
    report.total_elements = sum(wanted[name].numel() for name in counted if not name.endswith(_COUNTER))
    if report.new:
        report.notes.append(f"new {some(report.new)}")
    return report, loaded


def _is_expected(backbone: Backbone, name: str) -> bool:
    classifier = backbone.model.pretrained_cfg.get("classifier") or ()
    heads = ("fc", "head", "classifier", *([classifier] if isinstance(classifier, str) else classifier))
    if name in backbone.timm_names:
        return True
    if name.split(".")[0] in heads or any(name.startswith(f"{head}.") for head in heads):
        return True
    return backbone.norm == "group" and name.endswith(_STATISTICS)


def _resize_positions(model: Any, given: Tensor, value: Tensor) -> Tensor:
    """Interpolate a position embedding of a square grid to the model's; return it as it is where that cannot be."""
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
    if given.dim() != 3 or value.dim() != 3 or given.shape[2] != value.shape[2]:
        return given
    side = math.isqrt(max(given.shape[1] - prefix, 0))
    if side == 0 or side**2 + prefix != given.shape[1]:
        return given
    from timm.layers import resample_abs_pos_embed  # here and below, because timm takes seconds to import

    return resample_abs_pos_embed(given, list(model.patch_embed.grid_size), [side, side], prefix)


def _check_origin(backbone: Backbone, path: str | Path, description: Mapping[str, str]) -> None:
    if description.get("kind") != KIND:
        return
    name = description["name"]
    if name.split(".")[0] != backbone.name.split(".")[0]:
        raise ValueError(f"{path}: holds weights of {name}, expected those of {backbone.name}")
    if description["norm"] == "group" != backbone.norm:
        raise ValueError(f"{path}: was trained with norm: group, expected norm: {backbone.norm}; set norm: group")


def _take_normalization(backbone: Backbone, description: Mapping[str, str]) -> str:
    own = backbone.normalization
    if not description.get("kind", "").startswith("visionlab "):
        return f"input normalization {own.mean}, {own.std} kept, the source names none"
    given = Normalization(**json.loads(description["normalization"]))
    backbone.normalization = given
    verb = "as before" if given == own else "taken over with the weights"
    return f"input normalization {given.mean}, {given.std} {verb}"


def _timm_weights(backbone: Backbone) -> Mapping[str, Tensor]:
    import timm

    try:
        return timm.create_model(backbone.name, pretrained=True, num_classes=0).state_dict()
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"timm gives no weights for {backbone.name}: {one_line(error)}") from error

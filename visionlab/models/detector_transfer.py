"""A trained detector as the start of another: what fits is taken over, classes by their names."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from visionlab.models.backbone import Normalization
from visionlab.models.detector import KIND
from visionlab.models.norm import batch_norms
from visionlab.models.torchvision_weights import COCO_CLASSES, KNOWN_BY, SETTINGS, from_torchvision
from visionlab.models.transfer import TransferReport, some
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.models.weight_files import best_candidate, read_weights
from visionlab.models.weights import compare_backbone

BACKBONE = "backbone.model."
# torchvision's COCO_V1 was trained with an epsilon of 0 in its BatchNorm layers. The file says so by nothing but its
# content, whose hash torchvision puts into the file's name.
COCO_V1 = "258fb6c6"


@dataclass
class TrainedDetector:
    """What a file says of a detector.

    Args:
        state: its tensors, in our names.
        classes: the name of each label, None where it has none.
        settings: of its parts, as ``build_detector`` takes them.
        normalization: how pixels become its input, where the file says so.
        notes: what was found out about the file, in words.
    """

    state: dict[str, Tensor]
    classes: list[str | None]
    settings: dict[str, Any]
    normalization: Normalization | None = None
    notes: list[str] = field(default_factory=list)


def load_detector_weights(detector: TwoStageDetector, path: str | Path, *, min_matched: float = 0.95) -> TransferReport:
    """Load what fits of a trained detector into another, or refuse and change nothing.

    The rows of a class are taken over where the file has a class of that name (differences of case, spaces and
    underscores aside), and with them those of background. Classes that the file does not have keep their values and
    count for nothing in the share that is found.

    Args:
        detector: what to load into, made by ``build_detector``.
        path: what ``save_detector`` wrote, the run folder it lies in, or the ``state_dict`` of torchvision's
            ``fasterrcnn_resnet50_fpn``.
        min_matched: the least share of the detector's elements, and of the tensors of each of its parts (backbone,
            neck, rpn, head), that must be loaded, in [0, 1].

    Returns:
        What became of every tensor; its text is one line to print.

    Raises:
        ValueError: too little fits, the file is no detector, or cannot be read without running code from it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "detector.safetensors"
    source = read_trained_detector(path, detector.state_dict())
    _check_norm(detector, source, path)
    report, loaded = _compare(detector, source)
    report.source = str(path)
    report.notes = [*source.notes, *report.notes]
    differing = _differing(source.settings, detector.settings)
    if differing:
        report.notes.append(f"trained with other settings: {'; '.join(differing)}")
    part, share = _worst_part(report)
    if min(share, report.fraction) < min_matched:
        raise ValueError(
            f"{report}; expected at least {min_matched:.0%} matched of each part, got {share:.1%} of {part}"
        )
    detector.load_state_dict(loaded, strict=False)
    _take_input(detector, source, report)
    return report


def read_trained_detector(path: Path, names: Mapping[str, Tensor]) -> TrainedDetector:
    """Read a detector's file, ours or torchvision's.

    Args:
        path: the file.
        names: the names of the detector to load into, by which its tensors are found.

    Raises:
        ValueError: the file holds no detector.
    """
    content, description = read_weights(path)
    if description.get("kind") == KIND:
        return TrainedDetector(
            dict(content),
            json.loads(description["classes"]),
            json.loads(description["settings"]),
            Normalization(**json.loads(description["normalization"])),
        )
    _, _, tensors = best_candidate(content, [*names, *KNOWN_BY])
    if not all(name in tensors for name in KNOWN_BY):
        kind = description.get("kind", "").removeprefix("visionlab ")
        raise ValueError(
            f"{path}: expected a detector, written by visionlab or torchvision's fasterrcnn_resnet50_fpn, got "
            + (f"a {kind}; weights: {path} takes it" if kind else "no weights of one")
        )
    state = from_torchvision(tensors)
    labels = len(state["head.classes.bias"]) - 1
    is_coco = labels == len(COCO_CLASSES)
    notes = ["torchvision's Faster R-CNN" + (" of COCO's classes" if is_coco else ", whose classes nobody names")]
    settings = SETTINGS
    if hashlib.sha256(path.read_bytes()).hexdigest().startswith(COCO_V1):
        settings = {**settings, "norm_eps": 0.0}
        notes.append("COCO_V1, whose BatchNorm layers have an epsilon of 0")
    return TrainedDetector(state, list(COCO_CLASSES) if is_coco else [None] * labels, settings, notes=notes)


def _compare(detector: TwoStageDetector, source: TrainedDetector) -> tuple[TransferReport, dict[str, Tensor]]:
    """Sort all names of file and detector; also return what to load."""
    own = detector.state_dict()
    given = {name.removeprefix(BACKBONE): t for name, t in source.state.items() if name.startswith(BACKBONE)}
    wanted = {name.removeprefix(BACKBONE): t for name, t in own.items() if name.startswith(BACKBONE)}
    report, loaded = compare_backbone(detector.backbone, given, wanted)
    loaded = {f"{BACKBONE}{name}": tensor for name, tensor in loaded.items()}
    for names in (report.matched, report.resized, report.missing, report.new, report.mismatched, report.unexpected):
        names[:] = [f"{BACKBONE}{name}" for name in names]
    pairs = _pair_classes(detector.classes, source.classes)
    same = [theirs for _, theirs in pairs] == list(range(len(source.classes))) and len(pairs) == len(detector.classes)
    blocks = {} if same else detector.head.class_blocks()
    for name, value in own.items():
        if name.startswith(BACKBONE):
            continue
        tensor = source.state.get(name)
        if tensor is None:
            report.missing.append(name)
        elif name.removeprefix("head.") in blocks:
            counts = (len(detector.classes), len(source.classes))
            rows = _take_rows(value, tensor, blocks[name.removeprefix("head.")], pairs, counts)
            if not pairs:
                report.new.append(name)
                continue
            if rows is not None:
                loaded[name], taken = rows
                report.matched.append(name)
                report.matched_elements += taken
                report.total_elements += taken
                continue
            report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(value.shape)}")
        elif tensor.shape != value.shape:
            report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(value.shape)}")
        else:
            loaded[name] = tensor
            report.matched.append(name)
            report.matched_elements += value.numel()
        report.total_elements += value.numel()
    report.unexpected += sorted(name for name in source.state if name not in own and not name.startswith(BACKBONE))
    if not same:
        taken_over = [detector.classes[label] for label, _ in pairs]
        new = [name for name in detector.classes if name not in taken_over]
        report.notes.append(f"classes taken over by name {some(taken_over)}, new {some(new)}")
    return report, loaded


def _worst_part(report: TransferReport) -> tuple[str, float]:
    """Return the part of the detector of whose tensors the smallest share was found, and this share."""
    found = Counter(name.partition(".")[0] for name in report.matched)
    lost = Counter(name.partition(".")[0] for name in report.missing + report.mismatched)
    shares = {part: found[part] / (found[part] + lost[part]) for part in found | lost}
    part = min(shares, key=lambda name: shares[name])
    return part, shares[part]


def _pair_classes(ours: list[str], theirs: list[str | None]) -> list[tuple[int, int]]:
    """Return the label of each class that both have, in ours and in theirs."""
    found = {_key(name): label for label, name in reversed(list(enumerate(theirs))) if name is not None}
    exact = {name: label for label, name in enumerate(theirs) if name is not None}
    pairs = [(label, exact.get(name, found.get(_key(name)))) for label, name in enumerate(ours)]
    return [(label, other) for label, other in pairs if other is not None]


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _take_rows(
    own: Tensor, given: Tensor, further: int, pairs: list[tuple[int, int]], counts: tuple[int, int]
) -> tuple[Tensor, int] | None:
    """Take over the rows of some classes, and of background.

    Args:
        own: one block of rows for each class along the first dimension, then the ``further`` ones.
        given: the same for other classes.
        further: blocks that belong to no class: 1 where there is one of background, else 0.
        pairs: the labels of a class in both.
        counts: how many classes ``own`` and ``given`` have.

    Returns:
        The tensor and how many of its numbers were given; None where the blocks have another shape, as those of boxes
        that all classes share.
    """
    rows = len(own) // (counts[0] + further)
    if given.shape != (rows * (counts[1] + further), *own.shape[1:]):
        return None
    blocks, taken = given.unflatten(0, (-1, rows)), own.unflatten(0, (-1, rows)).clone()
    sources = [*pairs, *((counts[0] + extra, counts[1] + extra) for extra in range(further))]
    for label, other in sources:
        taken[label] = blocks[other]
    return taken.flatten(0, 1), sum(taken[label].numel() for label, _ in sources)


def _check_norm(detector: TwoStageDetector, source: TrainedDetector, path: Path) -> None:
    theirs, ours = source.settings["backbone"].get("norm", "train"), detector.backbone.norm
    if (theirs == "group") != (ours == "group"):
        raise ValueError(f"{path}: was trained with norm: {theirs}, expected norm: {ours}; set backbone.norm: {theirs}")


def _take_input(detector: TwoStageDetector, source: TrainedDetector, report: TransferReport) -> None:
    """Take over how pixels become input, and the epsilon of BatchNorm, which belong to the weights."""
    if source.normalization is not None and source.normalization != detector.backbone.normalization:
        detector.backbone.normalization = source.normalization
        report.notes.append(f"input normalization {source.normalization.mean}, {source.normalization.std} taken over")
    epsilon = source.settings.get("norm_eps")
    if epsilon is not None:
        for layer in batch_norms(detector.backbone):
            layer.eps = epsilon
        detector.settings["norm_eps"] = epsilon


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return the settings of parts, by name, that both say and that differ."""
    return [
        f"{part}.{name} {was}, here {ours[part][name]}"
        for part in ("backbone", "neck", "rpn", "head")
        for name, was in theirs.get(part, {}).items()
        if name in ours[part] and ours[part][name] != was
    ]

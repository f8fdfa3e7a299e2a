"""What constructors refuse, asked before a run reads any file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from visionlab.config.part import Part
from visionlab.config.stand_in import WIDTH, StandIn, strides_of
from visionlab.models.neck import Neck
from visionlab.models.roi_stage import RoIStage, check_roi_stage
from visionlab.settings import check_groups, groups_of
from visionlab.train.loop import Training
from visionlab.train.optim import LearningRate, WeightDecay, parameter_groups

Refusal = tuple[str, str]  # the keys that lead to a setting, with dots, and what is wrong there

# Settings of a backbone of which only the model can tell whether it has what they name.
_ASKED_OF_MODEL = ("output_stride", "roi_stage", "frozen_stages", "deform_stages")
SAMPLES = SimpleNamespace(files=[""], groups=None)
FOLDER = Path()


def refusals(name: str, section: Part, *parts: Any) -> list[Refusal]:
    """Return what a constructor says against its settings.

    Args:
        name: the key of the section.
        section: the settings.
        parts: what the program gives the constructor, or something that stands for it.
    """
    return _ask(name, section, lambda: build_on_meta(section, *parts))[1]


def group_refusals(name: str, section: Part) -> list[Refusal]:
    """Return what the groups of a constructor say against its settings; it may need files, so it is not called."""
    return _ask(name, section, lambda: check_groups(type(section).constructor, section.arguments()))[1]


def backbone_refusals(backbone: Part) -> list[Refusal]:
    """Return what a backbone says against its settings; it is built, which takes seconds, only where they need that."""
    if any(getattr(backbone, name) for name in _ASKED_OF_MODEL):
        return refusals("backbone", backbone)
    return group_refusals("backbone", backbone)


def training_refusals(training: Part, device: str) -> list[Refusal]:
    """Return what is wrong with how a task is to be trained, on a kind of device that may not be known yet."""
    return _ask("train", training, lambda: Training(**training.arguments()).on(device))[1]


def factor_refusals(optimizer: Part, build: Callable[[], nn.Module]) -> list[Refusal]:
    """Return what is wrong with the factors on the learning rates of submodules.

    Args:
        optimizer: its settings.
        build: returns what is to be trained. It is called on the meta device, and only where there are factors, because
            it may take seconds; where it fails, the settings of its parts are asked elsewhere.
    """
    kinds = [group.kind for group in groups_of(type(optimizer).constructor).values()]
    if LearningRate not in kinds or not optimizer.lr_factors or group_refusals("optimizer", optimizer):
        return []
    module, _ = _ask("optimizer", optimizer, lambda: _on_meta(build))
    if module is None:
        return []
    rate = LearningRate(lr=optimizer.lr, lr_factors=optimizer.lr_factors)
    return _ask("optimizer", optimizer, lambda: parameter_groups(module, rate, WeightDecay(weight_decay=0)))[1]


def pretext_refusals(backbone: Part, pretext: Part) -> Iterator[Refusal]:
    """Yield what a pretext method says against its settings, or against those of the backbone it is built on."""
    found = refusals("pretext", pretext, StandIn(backbone))
    if found:
        # Now it is worth the seconds to build the backbone: what is refused may fit its own levels and layers.
        real, found = _ask("backbone", backbone, lambda: build_on_meta(backbone))
        if real is not None:
            found = refusals("pretext", pretext, real)
    for key, message in found:
        # What is wrong may be a setting of the backbone: the method can only say which.
        place, what = _place("backbone", backbone, message)
        yield (place, what) if key == "pretext" and place != "backbone" else (key, message)


def detector_refusals(backbone: Part, neck: Part, rpn: Part, head: Part) -> list[Refusal]:
    """Return what the parts of a detector say against their settings."""
    name = getattr(head, "name", type(head).constructor.__name__)
    _, found = _ask("backbone", backbone, lambda: check_roi_stage(type(head).constructor, name, backbone.roi_stage))
    if found:
        return found
    # A prime, which no neck makes by chance and no pool divides.
    width, strides = WIDTH + 1, strides_of(backbone)
    stage = RoIStage((), width, WIDTH, 2) if backbone.roi_stage else None
    widths, found = _refusals_at([width] * len(strides), strides, stage, neck, rpn, head)
    if found and (backbone.strides is None or stage is not None or width in widths):
        # Now it is worth the seconds to build the backbone: what is refused may fit its own levels.
        real, found = _ask("backbone", backbone, lambda: build_on_meta(backbone))
        if real is not None:
            _, found = _refusals_at(real.channels, real.strides, real.roi_stage, neck, rpn, head)
    return found


def _refusals_at(
    channels: list[int], strides: list[int], stage: RoIStage | None, neck: Part, rpn: Part, head: Part
) -> tuple[list[int], list[Refusal]]:
    """Return the channels of the levels that a neck makes of some, and what it and both stages refuse."""

    def levels_of() -> tuple[list[int], tuple[int, list[int]], tuple[int, list[int]]]:
        levels: Neck = build_on_meta(neck, channels, strides)
        first, second = (levels.width_and_strides(which) for which in (levels.proposal_levels, levels.pooled_levels))
        return levels.channels, first, second

    made, found = _ask("neck", neck, levels_of)
    if made is None:
        return channels, found
    widths, first, second = made
    of_backbone = () if stage is None else (stage,)
    return widths, [*refusals("rpn", rpn, *first), *refusals("head", head, *second, 1, *of_backbone)]


def _ask(name: str, section: Part, call: Callable[[], Any]) -> tuple[Any, list[Refusal]]:
    """Return what a call returns, and what it says against the settings of a section if it cannot."""
    try:
        return call(), []
    except ValueError as error:
        return None, [_place(name, section, str(error))]
    except Exception as error:
        text = " ".join(str(error).split())
        if "meta tensor" in text or "meta device" in text:  # it asks for values, of which the run alone can tell
            return None, []
        return None, [(name, f"cannot be built with these settings: {type(error).__name__}: {text[:200]}")]


class _NoValues(TorchFunctionMode):
    """Leaves out what only changes values, which meta tensors lack: PyTorch would import its compiler for it."""

    KEEP_SHAPE = frozenset({"normal_", "uniform_", "normalize"})

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in self.KEEP_SHAPE:
            return next(iter([*args, *(kwargs or {}).values()]))
        return function(*args, **(kwargs or {}))


def build_on_meta(section: Part, *parts: Any) -> Any:
    """Call a constructor on PyTorch's meta device, where tensors have a shape but no memory."""
    return _on_meta(lambda: section.build(*parts))


def _on_meta(build: Callable[[], Any]) -> Any:
    # That a config is read must not change what is drawn afterwards.
    with torch.random.fork_rng([]), _NoValues(), torch.device("meta"):
        return build()


def _place(name: str, section: Part, message: str) -> Refusal:
    """Return the keys that a constructor's ``setting: what`` leads to, and what is wrong there."""
    setting, _, what = message.partition(": ")
    known = what and setting.partition(".")[0] in type(section).model_fields
    return (f"{name}.{setting}", what) if known else (name, message)

"""All a config may say, top to bottom.

A section that is read ``From`` a constructor takes what stands after the star in its signature; from a table, the key
``name`` chooses the constructor. Paths are relative to the folder in which the command is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from torch import nn

from visionlab.choices import OneOf
from visionlab.config.part import From, Part, Section
from visionlab.config.refusals import (
    FOLDER,
    SAMPLES,
    backbone_refusals,
    detector_refusals,
    factor_refusals,
    group_refusals,
    pretext_refusals,
    refusals,
    training_refusals,
)
from visionlab.data.loader import TrainLoader
from visionlab.data.sources import DETECT_DATA, PRETRAIN_DATA
from visionlab.data.transforms import DetectionTransform, EvaluationResize
from visionlab.eval.detection import DetectionEvaluator
from visionlab.models.backbone import Backbone
from visionlab.models.detector import DEFAULT_HEAD, HEAD, NECK, build_detector
from visionlab.models.rpn import RPN
from visionlab.pretext import PRETEXTS, Pretext
from visionlab.train.checkpoint import Checkpoints
from visionlab.train.log import Log
from visionlab.train.loop import train
from visionlab.train.named_optimizers import OPTIMIZER
from visionlab.train.schedule import SCHEDULES

MIN_MATCHED = 0.95
# Of data whose parts a config may name: the settings that name what is trained on and what is evaluated on.
NAMED_PARTS = {"coco": ("annotations", "val_annotations"), "voc": ("image_sets", "val_image_sets")}
SCHEDULE = OneOf(SCHEDULES)


class Common(Section):
    """What every kind of run says."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    # Of the kinds of run below, named here so that they stand at their place in a resolved config.
    task: Any

    out: str
    """The run folder. The same command on the same folder resumes the run."""

    seed: int = 0
    """From it derives all that is random in the run; which images a data section holds has seeds of its own."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""

    deterministic: bool = False
    """Allow only operations that give the same bits each time; slower on a GPU."""

    weights: str | None = None
    """The file that the backbone starts from: of a pretraining run, timm or torchvision; ``timm`` downloads timm's."""

    min_matched: Annotated[float, Field(ge=0, le=1)] = MIN_MATCHED
    """The share that must be found: of the backbone in ``weights``, of a detector in ``detector``."""

    data: Any
    backbone: Annotated[Part, From(Backbone)] = From(Backbone).default()
    train: Any
    optimizer: Annotated[Part, From(OPTIMIZER)]
    schedule: Annotated[Part, From(SCHEDULE)] = From(SCHEDULE).default(name="constant")
    loader: Annotated[Part, From(TrainLoader)]
    checkpoints: Annotated[Part, From(Checkpoints)] = From(Checkpoints).default()
    log: Annotated[Part, From(Log)] = From(Log).default()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield the settings that a part refuses, or that have no effect beside others, with what is wrong."""
        if not self.out.strip():
            yield "out", "expected a folder, got none"
        start = self.weights or getattr(self, "detector", None)
        if start is None and self.min_matched != MIN_MATCHED:
            yield "min_matched", "no effect without weights"
        if start is None and self.backbone.frozen_stages > 0:
            yield "backbone.frozen_stages", "would keep random weights, expected 0 without weights"
        yield from group_refusals("data", self.data)
        yield from backbone_refusals(self.backbone)
        yield from training_refusals(self.train, self.device)
        yield from group_refusals("optimizer", self.optimizer)
        if self.train.steps >= 1:
            yield from refusals("schedule", self.schedule, self.train.steps)
        yield from refusals("loader", self.loader, SAMPLES)
        yield from refusals("checkpoints", self.checkpoints, FOLDER, "")
        yield from refusals("log", self.log, FOLDER, self.train.steps)


class Pretrain(Common):
    """Train a backbone on unlabelled images: ``task: pretrain``."""

    task: Literal["pretrain"]
    data: Annotated[Part, From(OneOf(PRETRAIN_DATA), unnamed="auto")]
    pretext: Annotated[Part, From(OneOf(PRETEXTS, Pretext))]
    train: Annotated[Part, From(train, without=("evaluate_every", "compile"))]

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        yield from pretext_refusals(self.backbone, self.pretext)
        yield from factor_refusals(
            self.optimizer, lambda: nn.ModuleDict({"pretext": self.pretext.build(self.backbone.build())})
        )


class Detect(Common):
    """Train a detector on labelled images, and evaluate it: ``task: detect``."""

    task: Literal["detect"]
    data: Annotated[Part, From(OneOf(DETECT_DATA), unnamed="auto")]
    detector: str | None = None
    """The trained detector to start from: our file or run folder, or torchvision's ``fasterrcnn_resnet50_fpn``."""

    transform: Annotated[Part, From(DetectionTransform)] = From(DetectionTransform).default()
    resize: Annotated[Part, From(EvaluationResize)] | None = None
    """The size for evaluation and prediction; by default the largest that ``transform`` trains with."""

    neck: Annotated[Part, From(NECK)] = From(NECK).default(name="fpn")
    rpn: Annotated[Part, From(RPN)] = From(RPN).default()
    head: Annotated[Part, From(HEAD, unnamed=DEFAULT_HEAD)] = From(HEAD, unnamed=DEFAULT_HEAD).default()
    train: Annotated[Part, From(train)]
    evaluate: Annotated[Part, From(DetectionEvaluator)] = From(DetectionEvaluator).default()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        if self.weights is not None and self.detector is not None:
            yield "weights", "expected either weights or detector, which brings its own backbone, got both"
        yield from refusals("transform", self.transform)
        if self.resize:
            yield from refusals("resize", self.resize)
        yield from detector_refusals(self.backbone, self.neck, self.rpn, self.head)
        yield from factor_refusals(
            self.optimizer, lambda: nn.ModuleDict({"detector": build_detector(["object"], **self.detector_parts())})
        )
        yield from refusals("evaluate", self.evaluate, {}, [])
        if self.train.compile and self.backbone.norm == "sync":
            yield "train.compile", "cannot compile backbone.norm sync, which waits for other processes"
        data = self.data
        train, val = NAMED_PARTS.get(data.name, ("", ""))
        if train and getattr(data, train) and getattr(data, val) is None and data.val_fraction is None:
            yield from self.without_validation()

    def detector_parts(self) -> dict[str, Any]:
        """Return what ``build_detector`` takes besides the classes."""
        return {name: getattr(self, name).model_dump() for name in ("backbone", "neck", "rpn", "head")}

    def without_validation(self) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect where there are no images to evaluate on."""
        missing = "without images to evaluate on, which data.val_fraction takes from those to train on"
        if self.train.evaluate_every is not None:
            yield "train.evaluate_every", f"no effect {missing}"
        if self.evaluate != type(self).model_fields["evaluate"].get_default(call_default_factory=True):
            yield "evaluate", f"no effect {missing}"


Run = Annotated[Pretrain | Detect, Field(discriminator="task")]

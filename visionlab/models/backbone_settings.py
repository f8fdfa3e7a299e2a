"""What may be said of a backbone, and what of it can be told to be wrong without building one."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from visionlab.checks import check_at_least
from visionlab.models.norm import NormPolicy
from visionlab.settings import Settings

# What Backbone itself decides, or what would reach for the network.
_RESERVED = {
    *("num_classes", "features_only", "in_chans", "img_size", "output_stride"),
    *("pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir"),
}


@dataclass(frozen=True, kw_only=True)
class BackboneSettings(Settings):
    """What a backbone is built from.

    Args:
        name: a model of timm, with or without the tag of its weights (``resnet50``, ``convnext_tiny.fb_in1k``).
        strides: the levels to give, by stride, finest first; deeper parts of the model are removed. Default: all the
            model has from 4 upwards (4, 8, 16, 32 for most, the patch size for a plain ViT).
        output_stride: the greatest stride of a level. Stages that would go beyond it keep the resolution and dilate
            their convolutions instead (à trous, as in R-FCN, Dai et al. 2016, arXiv:1605.06409): with the same weights
            a ResNet's features are what they were, and those of the places between. Of levels that then share a
            stride the deepest is taken. timm can dilate its ResNets, RegNets, ConvNeXts, EfficientNets and some
            others. Default: the model's own, 32 for most.
        roi_stage: the stage after the coarsest level is kept, under timm's names, and not run on images: the head of a
            detector runs it on pooled RoIs (``head: {name: res5}``). What is said of stages holds for it too. By
            default the levels are then those before the model's last.
        frozen_stages: 0 trains everything; n freezes the stem and the first n stages, which also stay in evaluation
            mode (MMDetection's ``frozen_stages`` for n > 0, detectron2's ``FREEZE_AT`` minus one). A stage is
            what timm groups under one name (``layer1``, ``stages.0``); in a plain ViT it is one block.
        norm: what BatchNorm does: ``train``, ``frozen`` (statistics and affine parameters fixed), ``sync`` (statistics
            over all processes), ``group`` (GroupNorm in its place).
        deform_stages: stages, counted as for ``frozen_stages``, whose 3x3 convolutions sample where learned offsets
            move them (Dai et al. 2017, arXiv:1703.06211). The offsets start at zero, so features are those of the plain
            model until they are trained.
        deform_groups: groups of channels that are moved apart from each other in such a convolution; Dai et al. have 4.
        deform_modulated: whether what is sampled is also weighed by a learned mask (Zhu et al. 2019, arXiv:1811.11168).
        image_size: side of the square images that a model of fixed size, or a position embedding, is built for.
            Default: the model's own. ViTs take any size all the same, by interpolation.
        options: further arguments of the timm model, for example ``{drop_path_rate: 0.1}``.
    """

    name: str = "resnet50"
    strides: list[int] | None = None
    output_stride: Literal[8, 16] | None = None
    roi_stage: bool = False
    frozen_stages: int = 0
    norm: NormPolicy = "train"
    deform_stages: list[int] | None = None
    deform_groups: int = 1
    deform_modulated: bool = False
    image_size: int | None = None
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if ":" in self.name or not (self.name.partition(".")[0] in _model_names() or _is_former_name(self.name)):
            close = get_close_matches(self.name, _model_names(), 3, 0.5)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"name: no timm model is called '{self.name}'{hint}")
        for key, levels in (("strides", self.strides), ("deform_stages", self.deform_stages)):
            if levels is not None:
                check_at_least(1, **{key: levels})
                if levels != sorted(set(levels)):
                    raise ValueError(f"{key}: expected them ascending, got {levels}")
        check_at_least(0, frozen_stages=self.frozen_stages)
        check_at_least(1, image_size=self.image_size, deform_groups=self.deform_groups)
        for key, default in (("deform_groups", 1), ("deform_modulated", False)):
            if not self.deform_stages and getattr(self, key) != default:
                raise ValueError(f"{key}: would have no effect without deform_stages")
        if self.output_stride not in (None, 8, 16):
            raise ValueError(f"output_stride: expected 8 or 16, got {self.output_stride}")
        if self.output_stride and self.roi_stage:
            raise ValueError("roi_stage: expected no output_stride, which makes a level of the last stage")
        if self.output_stride and self.strides and self.strides[-1] != self.output_stride:
            raise ValueError(f"output_stride: expected the last of strides {self.strides}, got {self.output_stride}")
        for option in self.options or {}:
            if option in _RESERVED:
                raise ValueError(f"options: '{option}' of {self.name} is not free to set")


@cache
def _model_names() -> Set[str]:
    """Return the names of timm's models, read off its sources."""
    spec = find_spec("timm")
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [path for folder in folders for path in Path(folder).glob("models/*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return {name for text in texts for name in re.findall(r"^@register_model\ndef (\w+)\(", text, re.MULTILINE)}


def _is_former_name(name: str) -> bool:
    import timm  # here, because it brings torchvision and torch._dynamo, which take seconds

    return timm.is_model(name)

"""Stages of a backbone whose 3x3 convolutions become deformable."""

from __future__ import annotations

from typing import Any

from torch import nn

from visionlab.models.backbone_settings import BackboneSettings
from visionlab.ops import DeformConv2dPack


def deform_stages(model: Any, settings: BackboneSettings) -> None:
    """Put a deformable convolution in place of every 3x3 convolution of ``settings.deform_stages``.

    Its offsets are zero at first, so the features stay what they were, and its weight keeps its name. As in the
    backbones of Dai et al. 2017, Deformable Convolutional Networks, arXiv:1703.06211.

    Args:
        model: a timm model, changed in place.
        settings: which stages and how; in those that do not train, offsets could not either.

    Raises:
        ValueError: the model has no such stage, there is nothing to make deformable in it, it is frozen, or its
            channels cannot be divided into the groups.
    """
    from timm.models import group_parameters  # here, because timm takes seconds to import

    name = settings.name
    groups = group_parameters(model, model.group_matcher(coarse=True))
    of_stages = [groups[key] for key in sorted(groups)]
    for stage in settings.deform_stages or ():
        if not 0 < stage < len(of_stages):
            raise ValueError(f"deform_stages: expected some of 1 to {len(of_stages) - 1} for {name}, got {stage}")
        if stage <= settings.frozen_stages:
            raise ValueError(f"deform_stages: stage {stage} is frozen, its offsets would stay zero")
        owners = [parameter.rpartition(".")[0] for parameter in of_stages[stage] if parameter.endswith(".weight")]
        chosen = [owner for owner in owners if _is_plain_3x3(model.get_submodule(owner))]
        if not chosen:
            raise ValueError(f"deform_stages: {name} has no 3x3 convolutions in stage {stage}")
        for owner in chosen:
            plain = model.get_submodule(owner)
            if plain.in_channels % settings.deform_groups:
                raise ValueError(
                    f"deform_groups: expected a divisor of the {plain.in_channels} channels of {owner} in {name}, "
                    f"got {settings.deform_groups}"
                )
            model.set_submodule(owner, _deformable(plain, settings.deform_groups, settings.deform_modulated))


def _is_plain_3x3(module: nn.Module) -> bool:
    # Subclasses of Conv2d compute something else: padding that depends on the image, normalized weights.
    return type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module.padding_mode == "zeros"


def _deformable(plain: nn.Conv2d, offset_groups: int, modulated: bool) -> DeformConv2dPack:
    """Return a deformable convolution with the weight and bias of a plain one."""
    if isinstance(plain.padding, str):
        total = [step * (size - 1) for step, size in zip(plain.dilation, plain.kernel_size, strict=True)]
        padding = [side // 2 if plain.padding == "same" else 0 for side in total]
    else:
        padding = list(plain.padding)
    pack = DeformConv2dPack(
        plain.in_channels,
        plain.out_channels,
        plain.kernel_size,
        plain.stride,
        padding,
        plain.dilation,
        plain.groups,
        plain.bias is not None,
        offset_groups,
        modulated,
    )
    pack.weight = nn.Parameter(plain.weight)
    pack.bias = None if plain.bias is None else nn.Parameter(plain.bias)
    return pack.to(plain.weight.device, plain.weight.dtype).train(plain.training)

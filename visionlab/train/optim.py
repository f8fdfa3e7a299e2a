"""Optimizers, with the parameter groups that weight decay and learning-rate factors ask for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import Optimizer

from visionlab.checks import check_above, check_at_least, check_in
from visionlab.settings import Settings, flat_settings


@dataclass(frozen=True, kw_only=True)
class LearningRate(Settings):
    """How fast which parameters learn.

    Args:
        lr: the learning rate, before the schedule's factor.
        lr_factors: factors on the learning rate of submodules, by name, for example ``{"backbone": 0.1}``. Between dots
            ``*`` stands for anything: ``{"offset_*": 0.1}``. Of names that fit, that of the innermost submodule counts,
            and of several of these the one with the most letters of its own.
        layer_decay: each layer of the backbone learns by this factor, in (0, 1), more slowly than the next, the last
            than what stands on the backbone (Clark et al. 2020, ELECTRA, arXiv:2003.10555; 0.65 to 0.9 for vision
            transformers). timm defines the layers.
    """

    lr: float
    lr_factors: dict[str, float] | None = None
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        check_above(0, lr=self.lr)
        check_in("(0, 1)", layer_decay=self.layer_decay)
        check_at_least(0, **{f"lr_factors.{name}": factor for name, factor in (self.lr_factors or {}).items()})


@dataclass(frozen=True, kw_only=True)
class WeightDecay(Settings):
    """How strongly which parameters are drawn towards zero.

    Args:
        weight_decay: added to the gradient as ``weight_decay * weight``; where the optimizer decouples it, each update
            multiplies weights by ``1 - lr * weight_decay`` instead.
        decay_norm_and_bias: whether normalization parameters and biases (all of at most one dimension) decay too.
    """

    weight_decay: float
    decay_norm_and_bias: bool = False

    def __post_init__(self) -> None:
        check_at_least(0, weight_decay=self.weight_decay)
        if self.decay_norm_and_bias and not self.weight_decay:
            raise ValueError("decay_norm_and_bias: no effect without weight_decay")


@dataclass(frozen=True, kw_only=True)
class Momentum(Settings):
    """How far an update goes on in the direction of those before.

    Args:
        momentum: the share of the last update that stays, in [0, 1).
        nesterov: look ahead along the momentum.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_in("[0, 1)", momentum=self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: no effect without momentum")


@dataclass(frozen=True, kw_only=True)
class Averages(Settings):
    """What Adam remembers of gradients.

    Args:
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
    """

    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        check_in("[0, 1)", betas=self.betas)


@flat_settings
def sgd(
    module: nn.Module,
    *,
    rate: LearningRate,
    direction: Momentum,
    decay: WeightDecay = WeightDecay(weight_decay=1e-4),
) -> Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        module: what learns; frozen parameters are left out.
        rate: how fast.
        direction: momentum.
        decay: of weights.
    """
    groups = parameter_groups(module, rate, decay)
    return torch.optim.SGD(groups, lr=rate.lr, momentum=direction.momentum, nesterov=direction.nesterov)


@flat_settings
def adamw(
    module: nn.Module,
    *,
    rate: LearningRate,
    averages: Averages,
    decay: WeightDecay = WeightDecay(weight_decay=0.05),
) -> Optimizer:
    """Adam with decoupled weight decay.

    Args:
        module: what learns; frozen parameters are left out.
        rate: how fast.
        averages: of gradients.
        decay: of weights.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """
    return torch.optim.AdamW(parameter_groups(module, rate, decay), lr=rate.lr, betas=averages.betas)


_BEYOND = "beyond the last layer"
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": sgd, "adamw": adamw}


def parameter_groups(module: nn.Module, rate: LearningRate, decay: WeightDecay) -> list[dict]:
    """Sort the trainable parameters of a module by learning-rate factor and weight decay.

    Raises:
        ValueError: a factor fits no submodule that has a trainable parameter, or there is none at all; or nothing in
            the module says what its layers are.
    """
    factors = rate.lr_factors or {}
    layers = {} if rate.layer_decay is None else _layer_factors(module, rate.layer_decay)
    unused = set(factors)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        precision = {pattern: _precision(pattern, name) for pattern in factors}
        owners = [pattern for pattern in factors if precision[pattern][0] > 0]
        unused -= set(owners)
        factor = factors[max(owners, key=lambda pattern: precision[pattern])] if owners else 1.0
        factor *= layers.get(name, 1.0)
        strength = decay.weight_decay if decay.decay_norm_and_bias or parameter.ndim > 1 else 0.0
        group = groups.setdefault((factor, strength), {"params": [], "lr": rate.lr * factor, "weight_decay": strength})
        group["params"].append(parameter)
    if unused:
        raise ValueError(f"lr_factors: no trainable parameter lies in a submodule named {', '.join(sorted(unused))}")
    if not groups:
        raise ValueError("there is nothing to train: all parameters are frozen")
    return list(groups.values())


def _precision(pattern: str, name: str) -> tuple[int, int]:
    """Return how precisely a pattern names a submodule that a parameter lies in; what is larger is more precise.

    Returns:
        How deep the outermost such submodule lies, 0 where there is none, and how many letters of the pattern stand for
        themselves.
    """
    owners, parts = name.split(".")[:-1], pattern.split(".")
    ends = range(len(parts), len(owners) + 1)
    fitting = [end for end in ends if all(map(fnmatchcase, owners[end - len(parts) : end], parts))]
    return min(fitting, default=0), len(re.sub(r"\*|\?|\[.*?\]", "", pattern))


def _layer_factors(module: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return the factor of each parameter that lies in a layer of a trainable timm model inside a module."""
    from timm.models._manipulate import group_with_matcher  # here, because timm takes seconds to import

    factors: dict[str, float] = {}
    for prefix, model in module.named_modules():
        if not hasattr(model, "group_matcher") or not any(p.requires_grad for p in model.parameters()):
            continue
        # timm's own layers, and beyond the last of them what its classifier would be.
        names = [*model.named_parameters(), (_BEYOND, None)]
        layer_of = group_with_matcher(iter(names), model.group_matcher(coarse=False), reverse=True)
        for name, layer in layer_of.items():
            factors[f"{prefix}.{name}".lstrip(".")] = layer_decay ** (layer_of[_BEYOND] - layer)
    if not factors:
        raise ValueError("layer_decay: no effect, no model of timm that says what its layers are is trained here")
    return factors

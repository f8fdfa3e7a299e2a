"""Optimizers, with the parameter groups that weight decay and learning-rate factors ask for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from visionlab.checks import check_above, check_at_least, check_in


def sgd(
    module: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    decay_norm_and_bias: bool = False,
    lr_factors: dict[str, float] | None = None,
) -> Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        module: what learns; frozen parameters are left out.
        lr: the learning rate, before the schedule's factor.
        momentum: in [0, 1).
        weight_decay: added to the gradient as ``weight_decay * weight``.
        nesterov: look ahead along the momentum.
        decay_norm_and_bias: whether normalization parameters and biases (all of at most one dimension) decay too.
        lr_factors: factors on the learning rate of submodules, by name, for example ``{"backbone": 0.1}``.
    """
    check_optimizer(
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        decay_norm_and_bias=decay_norm_and_bias,
        lr_factors=lr_factors,
    )
    groups = _groups(module, lr, weight_decay, decay_norm_and_bias, lr_factors)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def adamw(
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.05,
    decay_norm_and_bias: bool = False,
    lr_factors: dict[str, float] | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay.

    Args:
        module: what learns; frozen parameters are left out.
        lr: the learning rate, before the schedule's factor.
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
        weight_decay: each update also multiplies weights by ``1 - lr * weight_decay``.
        decay_norm_and_bias: whether normalization parameters and biases (all of at most one dimension) decay too.
        lr_factors: factors on the learning rate of submodules, by name, for example ``{"backbone": 0.1}``.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """
    check_optimizer(
        lr=lr, betas=betas, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias, lr_factors=lr_factors
    )
    groups = _groups(module, lr, weight_decay, decay_norm_and_bias, lr_factors)
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": sgd, "adamw": adamw}


def check_optimizer(
    *,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool,
    lr_factors: dict[str, float] | None,
    momentum: float | None = None,
    nesterov: bool = False,
    betas: tuple[float, float] | None = None,
) -> None:
    """Refuse the settings of an optimizer that have no sense whatever it trains."""
    check_above(0, lr=lr)
    check_in("[0, 1)", momentum=momentum, betas=betas)
    check_at_least(0, weight_decay=weight_decay)
    check_at_least(0, **{f"lr_factors.{name}": factor for name, factor in (lr_factors or {}).items()})
    if nesterov and not momentum:
        raise ValueError("nesterov: no effect without momentum")
    if decay_norm_and_bias and not weight_decay:
        raise ValueError("decay_norm_and_bias: no effect without weight_decay")


def _groups(
    module: nn.Module, lr: float, weight_decay: float, decay_norm_and_bias: bool, lr_factors: dict[str, float] | None
) -> list[dict]:
    """Sort the trainable parameters by learning-rate factor and weight decay."""
    factors = lr_factors or {}
    unused = set(factors)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        owners = [part for part in factors if f".{part}." in f".{name}"]
        unused -= set(owners)
        factor = factors[max(owners, key=len)] if owners else 1.0  # the most precise name wins
        decay = weight_decay if decay_norm_and_bias or parameter.ndim > 1 else 0.0
        group = groups.setdefault((factor, decay), {"params": [], "lr": lr * factor, "weight_decay": decay})
        group["params"].append(parameter)
    if unused:
        raise ValueError(f"lr_factors: no trainable parameter lies in a submodule named {', '.join(sorted(unused))}")
    if not groups:
        raise ValueError("there is nothing to train: all parameters are frozen")
    return list(groups.values())

"""Momentum encoders: copies of networks that follow them slowly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from visionlab.checks import check_in


class MomentumCopy(nn.ModuleList):
    """Copies of networks that are moving averages of them and never see a gradient.

    The copies stay in evaluation mode, and their running statistics are averaged like the weights are. What they say of
    an image then depends on that image alone, so batch statistics cannot give away which images came in one batch:
    without that, BatchNorm lets a network solve contrastive tasks by recognizing batches (He et al., section 3.3).

    Args:
        networks: what is copied.
        momentum: the share of the old weights that stays at an update, in [0, 1].
        final_momentum: the share at the end of training, in [0, 1], to which ``momentum`` moves along half a cosine; by
            default it is constant.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, arXiv:1911.05722,
    equation 2; Cai et al., "Exponential Moving Average Normalization", 2021, arXiv:2101.08482, for the statistics;
    Grill et al., "Bootstrap Your Own Latent", 2020, arXiv:2006.07733, section 3.3, for the cosine.
    """

    steps: torch.Tensor

    def __init__(self, networks: Iterable[nn.Module], momentum: float, final_momentum: float | None = None):
        check_in("[0, 1]", momentum=momentum, final_momentum=final_momentum)
        # Copied as a whole, so that what networks share, their copies share too.
        super().__init__(deepcopy(nn.ModuleList(networks)).requires_grad_(False).eval())
        self.momentum, self.final_momentum = momentum, final_momentum
        if final_momentum is not None:
            self.register_buffer("steps", torch.tensor(0))
        self._steps: int | None = None  # the buffer's number once it was looked at: looking waits for the device

    def train(self, mode: bool = True) -> MomentumCopy:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def momentum_at(self, step: int, steps: int) -> float:
        """Return the share of the old weights that stays at an update.

        Args:
            step: the number of the update, from 0.
            steps: updates in the whole training.
        """
        if self.final_momentum is None:
            return self.momentum
        return self.final_momentum - (self.final_momentum - self.momentum) * (1 + math.cos(math.pi * step / steps)) / 2

    @torch.no_grad()
    def update(self, networks: Iterable[nn.Module], step: int, steps: int) -> None:
        """Move a step towards the networks, which are those that were copied; counters are taken over as they are.

        Args:
            networks: those that were copied, in the same order.
            step: the number of the update, from 0.
            steps: updates in the whole training.

        Raises:
            ValueError: earlier updates were made for a training of another length, with another momentum.
        """
        self._check_length(steps)
        own, online = self.state_dict(), nn.ModuleList(networks).state_dict()
        moving = [name for name, value in online.items() if value.is_floating_point()]
        average = get_ema_multi_avg_fn(self.momentum_at(step, steps))
        average([own[name] for name in moving], [online[name] for name in moving], None)
        for name in online.keys() - set(moving):
            own[name].copy_(online[name])

    def _check_length(self, steps: int) -> None:
        if self.final_momentum is None or self._steps == steps:
            return
        self._steps = int(self.steps) or steps
        if self._steps != steps:
            raise ValueError(
                f"steps: expected {self._steps}, as before, since the momentum depends on them, got {steps}; start a "
                f"new run from the weights of this one"
            )
        self.steps.fill_(steps)

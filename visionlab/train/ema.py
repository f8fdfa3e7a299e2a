"""A moving average of a run's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from visionlab.checks import check_in


class WeightAverage:
    """The exponential moving average of all floating-point state of a module, buffers included.

    Running statistics are averaged with the weights they belong to. Integer state (counters) is not averaged: the
    module's own stays in place.

    Args:
        module: what learns, already on its device.
        decay: how much of the average stays at each update, in (0, 1). The first updates use less,
            ``(1 + step) / (10 + step)``, so that the random start is soon forgotten.

    Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging".
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        check_in("(0, 1)", ema_decay=decay)
        self.module = module
        self.decay = decay
        self._average = {name: value.clone() for name, value in self._current().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after update ``step``, counted from 0."""
        current = self._current()
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move(list(self._average.values()), [current[name] for name in self._average], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the module hold the average inside the ``with`` block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average, by the module's own names."""
        return self._average

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over an average that ``state_dict`` returned."""
        for name, value in self._average.items():
            value.copy_(state[name])

    def copy_to_module(self) -> None:
        """Replace the module's weights by their average."""
        self.module.load_state_dict(self._average, strict=False)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._current().items():
            kept = value.clone()
            value.copy_(self._average[name])
            self._average[name].copy_(kept)

    def _current(self) -> dict[str, Tensor]:
        """Return the module's own tensors, asked for anew because a module may replace a buffer."""
        return {name: value for name, value in self.module.state_dict().items() if value.is_floating_point()}

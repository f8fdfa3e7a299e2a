"""Learning-rate schedules: functions from the number of an update to a factor on the learning rate."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from visionlab.checks import check_above, check_at_least, check_in
from visionlab.settings import Settings, flat_settings

Schedule = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Warmup(Settings):
    """The start of a schedule, in which the factor grows.

    Args:
        warmup_steps: updates in which the factor grows linearly from ``warmup_factor`` to 1, before all else.
        warmup_factor: the factor of the first update, in [0, 1); needs ``warmup_steps``.
    """

    warmup_steps: int = 0
    warmup_factor: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, warmup_steps=self.warmup_steps)
        check_in("[0, 1)", warmup_factor=self.warmup_factor)
        if self.warmup_factor and not self.warmup_steps:
            raise ValueError("warmup_factor: no effect without warmup_steps")

    def within(self, steps: int) -> Warmup:
        """Return this warmup, which a run of so many updates must be longer than."""
        check_in(f"[0, {steps})", warmup_steps=self.warmup_steps)
        return self

    def factor(self, step: int) -> float:
        """Return the factor at an update of the warmup, 1 after it."""
        if step >= self.warmup_steps:
            return 1.0
        return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps


@flat_settings
def constant(steps: int, *, warmup: Warmup) -> Schedule:
    """Keep the learning rate as it is.

    Args:
        steps: updates in the run.
        warmup: how it begins.

    Returns:
        The factor as a function of the number of the update, from 0.
    """
    return warmup.within(steps).factor


@flat_settings
def cosine(steps: int, *, warmup: Warmup, final_factor: float = 0.0, restart_every: int | None = None) -> Schedule:
    """Lower the learning rate along half a cosine, after the warmup, to ``final_factor`` at the end of the run.

    Args:
        steps: updates in the run.
        warmup: how it begins.
        final_factor: the factor after the last update, in [0, 1).
        restart_every: updates after which the cosine begins anew, from 1; it then depends on nothing but the number of
            the update, so that a finished run can be given more steps. By default there is one cosine for the run.

    Returns:
        The factor as a function of the number of the update, from 0.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983, eq. 5.
    """
    warmup_steps = warmup.within(steps).warmup_steps
    check_in("[0, 1)", final_factor=final_factor)
    check_at_least(1, restart_every=restart_every)
    period = restart_every or steps - warmup_steps

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup.factor(step)
        done = step - warmup_steps
        progress = done % period / period if restart_every else min(1.0, done / period)
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    return factor


@flat_settings
def multistep(
    steps: int,
    *,
    milestones: list[int],
    gamma: float = 0.1,
    warmup: Warmup,
) -> Schedule:
    """Multiply the learning rate by ``gamma`` at each milestone.

    Args:
        steps: updates in the run.
        milestones: numbers of updates, rising, between 0 and ``steps``.
        gamma: the factor at each milestone, above 0.
        warmup: how it begins.

    Returns:
        The factor as a function of the number of the update, from 0.
    """
    warmup_steps = warmup.within(steps).warmup_steps
    check_above(0, gamma=gamma)
    edges = [warmup_steps - 1, *milestones, steps]
    if not milestones or any(low >= high for low, high in itertools.pairwise(edges)) or milestones[0] < 1:
        raise ValueError(
            f"milestones: expected rising numbers, after 0 and the warmup ({warmup_steps}) and before steps ({steps}), "
            f"got {milestones}"
        )
    return lambda step: warmup.factor(step) * gamma ** bisect_right(milestones, step)


SCHEDULES: dict[str, Callable[..., Schedule]] = {"constant": constant, "cosine": cosine, "multistep": multistep}

"""Learning-rate schedules: functions from the number of an update to a factor on the learning rate."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable

from visionlab.checks import check_above, check_in

Schedule = Callable[[int], float]


def constant(steps: int, *, warmup_steps: int = 0, warmup_factor: float = 0.0) -> Schedule:
    """Keep the learning rate as it is.

    Args:
        steps: updates in the run.
        warmup_steps: updates in which the factor grows linearly from ``warmup_factor`` to 1.
        warmup_factor: the factor of the first update, in [0, 1); needs ``warmup_steps``.

    Returns:
        The factor as a function of the number of the update, from 0.
    """
    _check_warmup(steps, warmup_steps, warmup_factor)
    return lambda step: _warmup(step, warmup_steps, warmup_factor)


def cosine(steps: int, *, warmup_steps: int = 0, warmup_factor: float = 0.0, final_factor: float = 0.0) -> Schedule:
    """Lower the learning rate along half a cosine, after the warmup, to ``final_factor`` at the end of the run.

    Args:
        steps: updates in the run.
        warmup_steps: updates in which the factor grows linearly from ``warmup_factor`` to 1.
        warmup_factor: the factor of the first update, in [0, 1); needs ``warmup_steps``.
        final_factor: the factor after the last update, in [0, 1).

    Returns:
        The factor as a function of the number of the update, from 0.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983, eq. 5,
    without restarts.
    """
    _check_warmup(steps, warmup_steps, warmup_factor)
    check_in("[0, 1)", final_factor=final_factor)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps, warmup_factor)
        progress = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def multistep(
    steps: int,
    *,
    milestones: list[int],
    gamma: float = 0.1,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
) -> Schedule:
    """Multiply the learning rate by ``gamma`` at each milestone.

    Args:
        steps: updates in the run.
        milestones: numbers of updates, rising, between 0 and ``steps``.
        gamma: the factor at each milestone, above 0.
        warmup_steps: updates in which the factor grows linearly from ``warmup_factor`` to 1, before any milestone.
        warmup_factor: the factor of the first update, in [0, 1); needs ``warmup_steps``.

    Returns:
        The factor as a function of the number of the update, from 0.
    """
    _check_warmup(steps, warmup_steps, warmup_factor)
    check_above(0, gamma=gamma)
    edges = [warmup_steps - 1, *milestones, steps]
    if not milestones or any(low >= high for low, high in itertools.pairwise(edges)) or milestones[0] < 1:
        raise ValueError(
            f"milestones: expected rising numbers, after 0 and the warmup ({warmup_steps}) and before steps ({steps}), "
            f"got {milestones}"
        )
    return lambda step: _warmup(step, warmup_steps, warmup_factor) * gamma ** bisect_right(milestones, step)


SCHEDULES: dict[str, Callable[..., Schedule]] = {"constant": constant, "cosine": cosine, "multistep": multistep}


def _warmup(step: int, warmup_steps: int, warmup_factor: float) -> float:
    if step >= warmup_steps:
        return 1.0
    return warmup_factor + (1 - warmup_factor) * step / warmup_steps


def _check_warmup(steps: int, warmup_steps: int, warmup_factor: float) -> None:
    check_in(f"[0, {steps})", warmup_steps=warmup_steps)
    check_in("[0, 1)", warmup_factor=warmup_factor)
    if warmup_factor and not warmup_steps:
        raise ValueError("warmup_factor: no effect without warmup_steps")

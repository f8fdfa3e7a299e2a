"""What constructors ask of their settings, and the messages when they do not get it: ``name: expected …, got …``.

A setting may be a number, several (each is looked at, and there must be one), or None, which means it is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

Setting = float | Sequence[float] | None


def check_at_least(least: float, **settings: Setting) -> None:
    """Refuse settings below a bound: ``check_at_least(1, every=every, keep=keep)``."""
    _check(f"at least {least}", lambda value: value >= least, settings)


def check_above(bound: float, **settings: Setting) -> None:
    """Refuse settings that do not exceed a bound: ``check_above(0, lr=lr)``."""
    _check(f"more than {bound}", lambda value: value > bound, settings)


def check_in(interval: str, **settings: Setting) -> None:
    """Refuse settings outside an interval: ``check_in("[0, 1)", momentum=momentum)``."""
    low, high = map(float, interval[1:-1].split(","))

    def inside(value: float) -> bool:
        return low <= value <= high and (value > low or interval[0] == "[") and (value < high or interval[-1] == "]")

    _check(f"a number in {interval}", inside, settings)


def check_rising(**settings: Sequence[float]) -> None:
    """Refuse pairs whose first number is the larger: ``check_rising(crop_scale=crop_scale)``."""
    for name, (low, high) in settings.items():
        if low > high:
            raise ValueError(f"{name}: expected the smaller number first, got {(low, high)}")


def _check(bounds: str, holds: Callable[[float], bool], settings: dict[str, Setting]) -> None:
    for name, value in settings.items():
        several = isinstance(value, Sequence)
        values = value if isinstance(value, Sequence) else [] if value is None else [value]
        if (several and not values) or not all(isfinite(each) and holds(each) for each in values):
            expected = f"numbers, each {bounds.removeprefix('a number ')}" if several else bounds
            raise ValueError(f"{name}: expected {expected}, got {value}")

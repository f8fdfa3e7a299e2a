"""Means over seeds and their confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its Student-t 95 % confidence interval.

    Args:
        mean: of the samples.
        half_width: infinite for a single sample.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Interval:
        """Return the interval of independent samples, at least one."""
        n = len(samples)
        if n == 1:
            return cls(samples[0], float("inf"))
        error = float(np.std(samples, ddof=1)) / n**0.5
        return cls(float(np.mean(samples)), float(stats.t.ppf(0.975, n - 1)) * error)

    def to_json(self) -> dict[str, float | None]:
        """Return ``mean`` and ``half_width``, which is None where it is infinite."""
        return {"mean": self.mean, "half_width": None if np.isinf(self.half_width) else self.half_width}

    def text(self, scale: float = 100, digits: int = 1) -> str:
        """Return ``mean ± half width``; of a single sample the value alone, which has no known error.

        Args:
            scale: factor on both numbers; 100 shows a share in percent.
            digits: after the point.
        """
        mean = f"{scale * self.mean:.{digits}f}"
        return mean if np.isinf(self.half_width) else f"{mean} ± {scale * self.half_width:.{digits}f}"

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half_width:.1f}"

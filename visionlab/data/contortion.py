"""How objects of the embedded dataset bend, stretch and turn where a dataset asks for more than they do anyway."""

from __future__ import annotations

import math

import numpy as np

from visionlab.data.creatures import BodyPart

BEND = math.radians(150)  # between the two ends of an object, at most
STRETCH = 2.0  # of one axis against the other, at most
STEP = 0.05  # the longest straight line that is bent as one, in heights of an object


def contort(rng: np.random.Generator, parts: list[BodyPart], strength: float) -> list[BodyPart]:
    """Return the parts bent along the object's longer axis, stretched in some direction, and turned, on the ground.

    The axis becomes an arc of a circle; the stretch keeps areas.

    Args:
        rng: where the amounts come from.
        parts: outlines about 1 high, y up.
        strength: in (0, 1]; at 1 objects turn by any angle, bend by up to 150 degrees and stretch up to twofold.
    """
    u = rng.uniform
    bend = u(0.4, 1) * rng.choice([-1, 1]) * BEND * strength
    turn, direction = u(-1, 1, 2) * (math.pi * strength, math.pi)
    stretch = STRETCH ** (u(0.2, 0.5) * strength)

    outlines = [_with_short_sides(outline) for outline, _ in parts]
    points = np.concatenate(outlines)
    points = points - (points.min(0) + points.max(0)) / 2
    lengthwise = slice(None) if np.ptp(points[:, 0]) > np.ptp(points[:, 1]) else slice(None, None, -1)
    points = _rolled(points[:, lengthwise], bend)[:, lengthwise]
    points = (points @ rotation(direction)) * (stretch, 1 / stretch) @ rotation(turn - direction)
    points = points - ((points[:, 0].min() + points[:, 0].max()) / 2, points[:, 1].min())
    ends = np.cumsum([len(outline) for outline in outlines])
    return [(outline, material) for outline, (_, material) in zip(np.split(points, ends[:-1]), parts, strict=True)]


def _rolled(points: np.ndarray, bend: float) -> np.ndarray:
    """Return points around the origin, ``(N, 2)``, whose x axis is rolled into an arc; its ends differ by ``bend``."""
    along, across = points.T
    limit = 0.85 / np.abs(across).max()  # beyond it the center of the arc lies in the object, which would fold
    curvature = np.clip(bend / np.ptp(along), -limit, limit)
    if abs(curvature) < 1e-6:
        return points
    radius, angle = 1 / curvature - across, curvature * along
    return np.stack([radius * np.sin(angle), 1 / curvature - radius * np.cos(angle)], 1)


def rotation(angle: float) -> np.ndarray:
    """Return the matrix that turns rows of points counterclockwise by an angle in radians."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _with_short_sides(outline: np.ndarray) -> np.ndarray:
    """Return an outline with points added along its sides, so that they can bend."""
    sides = np.roll(outline, -1, 0) - outline
    counts = np.ceil(np.hypot(*sides.T) / STEP).astype(int).clip(1)
    share = np.concatenate([np.arange(count) / count for count in counts])[:, None]
    return np.repeat(outline, counts, 0) + np.repeat(sides, counts, 0) * share

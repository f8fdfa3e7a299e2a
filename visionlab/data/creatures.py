"""The object classes of the embedded dataset: outlines of their parts, bent and proportioned anew for every object.

Coordinates are canonical: x to the right, y up, the ground at y = 0, an object about 1 high and facing right. Color
says nothing about the class: what tells classes apart is which parts there are and how they hang together.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Point = tuple[float, float] | np.ndarray
BodyPart = tuple[np.ndarray, int]
"""The (P, 2) outline of a part and the material (0 to 3) it is made of; later parts cover earlier ones."""

SKIN, SECOND, DARK, LIGHT = range(4)
_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)
_WAVES = np.concatenate([[np.cos(k * _TURN), np.sin(k * _TURN)] for k in (2, 3, 4)])
_T = np.linspace(0, 1, 10)[:, None]


def blob(
    rng: np.random.Generator, x: float, y: float, rx: float, ry: float, *, wobble: float = 0.05, angle: float = 0.0
) -> np.ndarray:
    """Return the outline of an ellipse around ``(x, y)`` with smooth random dents, turned by ``angle`` radians."""
    dents = 1 + rng.uniform(-wobble, wobble, 6) @ _WAVES
    cos, sin = math.cos(angle), math.sin(angle)
    axes = np.array([[rx * cos, rx * sin], [-ry * sin, ry * cos]])
    return _CIRCLE * dents[:, None] @ axes + (x, y)


def limb(start: Point, bend: Point, end: Point, width: float, tip: float) -> np.ndarray:
    """Return the outline of a tube along a quadratic Bézier curve, from ``width`` wide to ``tip`` wide."""
    p0, p1, p2 = np.array([start, bend, end], dtype=float)
    path = (1 - _T) ** 2 * p0 + 2 * _T * (1 - _T) * p1 + _T**2 * p2
    along = (1 - _T) * (p1 - p0) + _T * (p2 - p1)
    along *= (width + (tip - width) * _T) / 2 / np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-6)
    side = along[:, ::-1] * (-1, 1)
    return np.concatenate([path + side, (path - side)[::-1]])


def beast(rng: np.random.Generator) -> list[BodyPart]:
    """Four legs, a long body, a neck with a head, ears and a tail."""
    u = rng.uniform
    back, length, depth = u(0.5, 0.62), u(0.3, 0.42), u(0.13, 0.2)
    parts: list[BodyPart] = []
    for far in (True, False):
        for side in (-0.75, 0.7):
            x = side * length + u(-0.05, 0.05) - 0.07 * far
            foot = x + u(-0.14, 0.14)
            knee = (x + u(-0.12, 0.12), back / 2)
            leg = limb((x, back - 0.04), knee, (foot, 0.0), u(0.11, 0.15), u(0.06, 0.09))
            parts.append((leg, SECOND if far else SKIN))
            if not far:
                parts.append((blob(rng, foot + 0.03, 0.03, 0.06, 0.035), DARK))
    tail = limb(
        (-length, back + 0.05),
        (-length - 0.2, back + u(0, 0.3)),
        (-length - u(0.1, 0.3), back + u(-0.3, 0.35)),
        0.07,
        0.03,
    )
    head_x, head_y = length + u(0.1, 0.24), back + u(0.16, 0.34)
    parts += [
        (tail, SECOND),
        (limb((length * 0.7, back), (length, back + 0.1), (head_x, head_y), 0.22, 0.13), SKIN),
        (blob(rng, 0, back, length + 0.06, depth), SKIN),
        (blob(rng, u(-0.1, 0.1), back + 0.03, length * 0.5, depth * 0.6, wobble=0.15), SECOND),
    ]
    for ear in (-0.06, 0.03):
        parts.append(
            (
                limb(
                    (head_x + ear, head_y + 0.05),
                    (head_x + ear - 0.03, head_y + 0.12),
                    (head_x + ear - u(0, 0.1), head_y + u(0.14, 0.24)),
                    0.08,
                    0.02,
                ),
                SECOND,
            )
        )
    parts += [
        (blob(rng, head_x + 0.05, head_y, u(0.13, 0.18), u(0.09, 0.12), angle=u(-0.5, 0.1)), SKIN),
        (blob(rng, head_x + 0.16, head_y - 0.05, 0.04, 0.035), DARK),
        (blob(rng, head_x + 0.05, head_y + 0.03, 0.025, 0.025), DARK),
    ]
    return parts


def bird(rng: np.random.Generator) -> list[BodyPart]:
    """Two thin legs, a leaning body, a wing, a fan tail, a small head with a beak."""
    u = rng.uniform
    y, lean, size = u(0.46, 0.56), u(0.2, 0.7), u(0.24, 0.3)
    head = (size * np.cos(lean) + u(0.04, 0.12), y + size * np.sin(lean) + u(0.08, 0.24))
    parts: list[BodyPart] = []
    for x, material in ((0.06, DARK), (-0.05, DARK)):
        foot = x + u(-0.1, 0.1)
        parts.append((limb((x, y - 0.1), (x + u(-0.1, 0.02), y / 2), (foot, 0.0), 0.05, 0.035), material))
        parts.append((limb((foot - 0.06, 0.0), (foot, 0.04), (foot + 0.12, 0.0), 0.03, 0.03), material))
    spread = u(0.05, 0.14)
    for k in (-1, 0, 1):
        angle = np.pi + lean * 0.8 + k * spread * 2
        end = (-0.15 + 0.5 * np.cos(angle), y + 0.5 * np.sin(angle))
        parts.append((limb((-0.1, y - 0.05), (-0.2, y - 0.08), end, 0.1, 0.09), SECOND))
    beak = u(0.12, 0.24)
    parts += [
        (limb((0.1, y + 0.05), (head[0], y + 0.1), head, 0.2, 0.11), SKIN),
        (blob(rng, 0, y, size + 0.04, size * u(0.62, 0.8), angle=lean * 0.7), SKIN),
        (blob(rng, -0.04, y + 0.03, size * 0.75, size * 0.36, angle=lean + u(-0.5, 0.3), wobble=0.1), SECOND),
        (
            limb(
                (head[0] + 0.04, head[1]),
                (head[0] + beak / 2, head[1] + 0.02),
                (head[0] + beak + 0.04, head[1] + u(-0.08, 0.02)),
                0.1,
                0.01,
            ),
            LIGHT,
        ),
        (blob(rng, *head, u(0.1, 0.13), u(0.09, 0.11)), SKIN),
        (blob(rng, head[0] + 0.04, head[1] + 0.02, 0.026, 0.026), DARK),
    ]
    return parts


def snail(rng: np.random.Generator) -> list[BodyPart]:
    """A coiled shell on a flat foot, with two stalks."""
    u = rng.uniform
    size, x = u(0.3, 0.4), u(-0.15, 0.0)
    y = size + 0.1
    front = x + size + u(0.12, 0.3)
    rise = u(0.2, 0.36)
    parts: list[BodyPart] = []
    for k in (-0.04, 0.06):
        tip = (front + k + u(0.0, 0.16), rise + u(0.22, 0.36))
        parts += [
            (limb((front + k, rise), (front + k, rise + 0.15), tip, 0.05, 0.03), SECOND),
            (blob(rng, *tip, 0.04, 0.04), DARK),
        ]
    parts += [
        (limb((x - size - u(0.1, 0.25), 0.02), (x, 0.1), (front, 0.06), 0.05, 0.16), SECOND),
        (limb((front - 0.18, 0.08), (front + 0.04, 0.04), (front + 0.03, rise), 0.16, 0.12), SECOND),
        (blob(rng, front + 0.05, rise, 0.1, 0.075), SECOND),
    ]
    turn = u(0, 2 * np.pi)
    for k, scale in enumerate((1.0, 0.72, 0.46, 0.22)):
        shift = 0.13 * size * k
        outline = blob(
            rng, x + shift * np.cos(turn), y + shift * np.sin(turn), size * scale, size * scale * u(0.85, 1.0)
        )
        parts.append((outline, SKIN if k % 2 == 0 else LIGHT))
    return parts


def mushroom(rng: np.random.Generator) -> list[BodyPart]:
    """A stem under a domed cap with spots; sometimes a ring and a small neighbor."""
    u = rng.uniform
    parts: list[BodyPart] = []

    def one(x: float, scale: float) -> None:
        top, width = (x + u(-0.12, 0.12), scale * u(0.55, 0.7)), scale * u(0.32, 0.5)
        dome = scale * u(0.26, 0.42)
        parts.append(
            (limb((x, 0.0), (x + u(-0.1, 0.1), 0.3 * scale), top, scale * u(0.18, 0.3), scale * u(0.1, 0.2)), LIGHT)
        )
        if rng.random() < 0.5:
            parts.append((blob(rng, (x + top[0]) / 2, top[1] * 0.62, scale * 0.14, scale * 0.04), SECOND))
        parts.append((blob(rng, top[0], top[1], width * 0.95, scale * 0.08), DARK))
        arc = np.linspace(0, np.pi, 18)
        skew = u(-0.12, 0.12)
        cap = np.stack(
            [top[0] + width * np.cos(arc) + skew * np.sin(arc), top[1] + dome * np.sin(arc) ** u(0.6, 1.1)], 1
        )
        parts.append((cap, SKIN))
        for _ in range(rng.integers(2, 6)):
            a, r = u(0.4, np.pi - 0.4), u(0.3, 0.8)
            spot = u(0.03, 0.065) * scale
            parts.append(
                (blob(rng, top[0] + r * width * np.cos(a), top[1] + 0.03 + r * dome * np.sin(a), spot, spot), SECOND)
            )

    if rng.random() < 0.35:
        one(u(0.3, 0.45) * rng.choice([-1, 1]), u(0.4, 0.6))
    one(0.0, 1.0)
    return parts


def flower(rng: np.random.Generator) -> list[BodyPart]:
    """A bending stem with leaves and a wreath of petals around a disc."""
    u = rng.uniform
    sway, height = u(-0.25, 0.25), u(0.66, 0.76)
    parts: list[BodyPart] = [(limb((0, 0), (sway * u(-0.6, 0.4), height / 2), (sway, height), 0.07, 0.05), SECOND)]
    for _ in range(rng.integers(2, 5)):
        side, y = rng.choice([-1, 1]), u(0.05, 0.4)
        parts.append(
            (
                limb(
                    (0, y),
                    (side * u(0.1, 0.22), y + u(0.1, 0.2)),
                    (side * u(0.25, 0.42), y + u(-0.06, 0.2)),
                    u(0.12, 0.18),
                    0.02,
                ),
                SECOND,
            )
        )
    petals, length, turn = rng.integers(5, 9), u(0.18, 0.28), u(0, 2 * np.pi)
    for k in range(petals):
        angle = turn + 2 * np.pi * k / petals + u(-0.12, 0.12)
        center = (sway + 0.62 * length * np.cos(angle), height + 0.62 * length * np.sin(angle))
        parts.append((blob(rng, *center, length * 0.62, length * u(0.26, 0.42), angle=angle), SKIN if k % 2 else LIGHT))
    parts.append((blob(rng, sway, height, length * 0.42, length * 0.42), DARK))
    return parts


def cart(rng: np.random.Generator) -> list[BodyPart]:
    """A body on two or three wheels with a cabin, a window and a chimney or a load."""
    u = rng.uniform
    length, wheel = u(0.42, 0.6), u(0.13, 0.19)
    floor, deck = wheel * u(0.8, 1.2), u(0.42, 0.55)
    bulge = u(-0.04, 0.08)
    body = [
        (-length, floor),
        (length, floor),
        (length + bulge, (floor + deck) / 2),
        (length - 0.04, deck),
        (0, deck + bulge),
        (-length, deck - u(-0.04, 0.06)),
        (-length - bulge, (floor + deck) / 2),
    ]
    cab, roof, width = u(0.1, 0.3) * length, u(0.75, 0.95), u(0.4, 0.62) * length
    parts: list[BodyPart] = []
    if rng.random() < 0.5:
        parts.append(
            (
                limb(
                    (-length * 0.6, deck - 0.05),
                    (-length * 0.6, deck + 0.1),
                    (-length * 0.6 + u(-0.08, 0.08), u(0.75, 1.0)),
                    0.1,
                    0.13,
                ),
                DARK,
            )
        )
    else:
        parts.append((blob(rng, -length * 0.55, deck, length * 0.4, u(0.12, 0.28), wobble=0.12), LIGHT))
    parts += [
        (
            np.array(
                [
                    (cab - width, deck - 0.05),
                    (cab + width, deck - 0.05),
                    (cab + width * u(0.6, 1.0), roof),
                    (cab - width * u(0.7, 1.0), roof),
                ]
            ),
            SECOND,
        ),
        (
            np.array(
                [
                    (cab - width * 0.55, deck + 0.06),
                    (cab + width * 0.6, deck + 0.06),
                    (cab + width * 0.45, roof - 0.08),
                    (cab - width * 0.5, roof - 0.08),
                ]
            ),
            LIGHT,
        ),
        (np.array(body), SKIN),
    ]
    for x in (-0.66, 0.66) if rng.random() < 0.6 else (-0.72, u(-0.1, 0.1), 0.72):
        parts += [
            (blob(rng, x * length, wheel, wheel, wheel, wobble=0.02), DARK),
            (blob(rng, x * length, wheel, wheel * 0.5, wheel * 0.5, wobble=0.02), SECOND),
        ]
    return parts


CREATURES: dict[str, Callable[[np.random.Generator], list[BodyPart]]] = {
    "beast": beast,
    "bird": bird,
    "snail": snail,
    "mushroom": mushroom,
    "flower": flower,
    "cart": cart,
}


def deform(rng: np.random.Generator, parts: list[BodyPart]) -> list[BodyPart]:
    """Return the parts mirrored at random, squeezed, leaned, tilted by at most 12 degrees and bent by a smooth wave."""
    u = rng.uniform
    mirror, squeeze, lean, tilt = rng.choice([-1, 1]), u(0.85, 1.2), u(-0.15, 0.15), u(-0.2, 0.2)
    wave = u(-0.05, 0.05, (2, 2))
    phase = u(0, 2 * np.pi, (2, 2))
    cos, sin = np.cos(tilt), np.sin(tilt)

    points = np.concatenate([outline for outline, _ in parts])
    y = points[:, 1] / squeeze
    x = points[:, 0] * mirror * squeeze + lean * y
    bent_x = x + wave[0, 0] * np.sin(4 * y + phase[0, 0]) + wave[0, 1] * np.sin(9 * y + phase[0, 1]) / 2
    bent_y = y + wave[1, 0] * np.sin(4 * x + phase[1, 0]) + wave[1, 1] * np.sin(9 * x + phase[1, 1]) / 2
    bent = np.stack([cos * bent_x - sin * bent_y, sin * bent_x + cos * bent_y], 1)
    ends = np.cumsum([len(outline) for outline, _ in parts])
    return [(outline, material) for outline, (_, material) in zip(np.split(bent, ends[:-1]), parts, strict=True)]

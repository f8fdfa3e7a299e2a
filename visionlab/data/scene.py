"""The scenes of the embedded dataset: deformable objects among clutter, on a textured background."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from visionlab.data.contortion import contort, rotation
from visionlab.data.creatures import CREATURES, DARK, BodyPart, blob, deform, limb

# Scenes are drawn in integers at twice their size and averaged down: the same bytes on every CPU, soft edges, and boxes
# that are exact to half a pixel.
FINE = 2
MIN_SIZE = 16  # of an image in pixels; below it slopes of the background leave the range of the integers
CLASSES = list(CREATURES)
_SINE = np.round(127 * np.sin(np.arange(256) * 2 * np.pi / 256)).astype(np.int16)


@dataclass
class SceneObject:
    """One labelled object: its class, and where it is seen.

    Args:
        label: index into ``CLASSES``.
        mask: ``(2 * size, 2 * size)`` uint8, non-zero at its visible pixels at twice the image's size.
    """

    label: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The tight box of the visible pixels: ``x1, y1, x2, y2`` in pixels of the image."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        x1, y1, x2, y2 = (float(end) / FINE for end in ends)
        return x1, y1, x2, y2

    def annotation(self) -> dict:
        """Return what COCO json says about the object, ids of image and annotation aside."""
        x1, y1, x2, y2 = self.box
        outlines, _ = cv2.findContours(self.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        polygons = [((outline + 0.5) / FINE).ravel().tolist() for outline in outlines if len(outline) > 2]
        return {
            "category_id": self.label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": cv2.countNonZero(self.mask) / FINE**2,
            "segmentation": polygons,
            "iscrowd": 0,
        }


class Scene:
    """A scene painted from front to back: what is painted first covers what comes later."""

    def __init__(self, seed: int, size: int, deformation: float) -> None:
        self.rng, self.size = np.random.default_rng(seed), size * FINE
        # Apart from the rest, so that a scene keeps its objects and their places whatever the deformation.
        self.contortions, self.deformation = np.random.default_rng([seed, 1]), deformation
        rng = self.rng
        self.canvas = np.zeros((self.size, self.size, 3), np.uint8)
        self.covered = np.zeros((self.size, self.size), np.uint8)
        self.shadow = np.full((self.size, self.size), 128, np.uint8)
        self.tint = rng.integers(30, 226, 3)
        angle, strength = rng.uniform(-1.3, 1.3), rng.uniform(0, 40)
        self.light = (strength * math.sin(angle), -strength * math.cos(angle))

    # ---- textures ----------------------------------------------------------------------------------------------

    def noise(self, height: int, width: int, cells: int) -> np.ndarray:
        """Return smooth noise, ``(height, width)`` uint8, with about ``cells`` bumps along each side."""
        coarse = self.rng.integers(0, 256, (cells, cells), dtype=np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)

    def stripes(self, height: int, width: int, period: float) -> np.ndarray:
        """Return wavy stripes in a random direction, ``(height, width)`` int16 in [-127, 127]."""
        angle = self.rng.uniform(0, math.pi)
        x = np.arange(width, dtype=np.int16) * int(256 / period * math.cos(angle) * 16)
        y = np.arange(height, dtype=np.int16)[:, None] * int(256 / period * math.sin(angle) * 16)
        wave = self.noise(height, width, 4).astype(np.int16) << 4
        return _SINE[((x + y + wave) >> 4) & 255]

    def surface(self, size: int) -> np.ndarray:
        """Return a textured surface, ``(size, size, 3)`` uint8, colored along a run through three colors."""
        rng = self.rng
        value = rng.integers(-24, 25, (size, size), dtype=np.int16)
        for cells in (3, 7, 17, 41):
            value += (self.noise(size, size, cells).astype(np.int16) - 128) * int(rng.integers(20, 120)) >> 7
        if rng.random() < 0.5:
            value += self.stripes(size, size, rng.uniform(6, 30)) * int(rng.integers(20, 100)) >> 7
        first, middle, last = rng.integers(0, 256, (3, 1, 3)) // 2 + (rng.integers(0, 256, 3) + self.tint) // 4
        t = np.arange(256)[:, None]
        colors = np.where(t < 128, first * (127 - t) + middle * t, middle * (255 - t) + last * (t - 128)) // 127
        return np.take(colors.astype(np.uint8), np.clip(value + 128, 0, 255), axis=0)

    def material(self, index: np.ndarray, materials: list[int], light: tuple[float, float], scale: float) -> np.ndarray:
        """Return the colors of a patch of parts: base color, texture, rounded shading, dark seams."""
        rng, (height, width) = self.rng, index.shape
        hues = rng.integers(10, 256, (4, 3)) * 3 // 4 + self.tint // 4
        hues[DARK] //= 3
        colors = np.take(np.concatenate([hues[:1], hues[materials]]).astype(np.uint8), index, axis=0)
        amount = np.take(np.concatenate([[0], rng.integers(0, 50, 4)[materials]]).astype(np.int16), index)
        if rng.random() < 0.5:
            texture = self.stripes(height, width, scale * rng.uniform(0.08, 0.3))
        else:
            texture = self.noise(height, width, int(rng.integers(6, 16))).astype(np.int16) - 128
        reach = max(3, int(scale * 0.12)) | 1
        mass = cv2.blur(np.minimum(index, 1) * 255, (reach, reach))
        slope_x, slope_y = cv2.Sobel(mass, cv2.CV_16S, 1, 0), cv2.Sobel(mass, cv2.CV_16S, 0, 1)
        shade = -(slope_x * int(light[0]) + slope_y * int(light[1])) // (2040 // reach)
        seams = np.minimum(cv2.morphologyEx(index, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)), 1)
        return _scaled(colors, np.clip(108 + (texture * amount >> 7) + shade - seams * np.int16(30), 15, 165))

    # ---- shapes, from front to back --------------------------------------------------------------------------------

    def paint(
        self, parts: list[BodyPart], foot: tuple[float, float], scale: float, light: tuple[float, float], least: float
    ) -> np.ndarray | None:
        """Paint parts behind all that is painted; return the mask of what shows, None if it is less than a share."""
        outlines = [points * (scale, -scale) + foot for points, _ in parts]
        everything = np.concatenate(outlines)
        left, top = (np.floor(everything.min(0)).astype(int) - 1).tolist()
        right, bottom = (np.ceil(everything.max(0)).astype(int) + 2).tolist()
        index = np.zeros((bottom - top, right - left), np.uint8)
        for number, outline in enumerate(outlines, 1):
            cv2.fillPoly(index, [np.round((outline - (left, top)) * 16).astype(np.int32)], number, cv2.LINE_8, 4)
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, self.size), min(bottom, self.size)
        if x1 >= x2 or y1 >= y2:
            return None
        area = cv2.countNonZero(index)
        index = np.ascontiguousarray(index[y1 - top : y2 - top, x1 - left : x2 - left])
        window = np.s_[y1:y2, x1:x2]
        shows = cv2.compare(index, self.covered[window], cv2.CMP_GT)
        if cv2.countNonZero(shows) <= least * area:
            return None
        colors = self.material(index, [material for _, material in parts], light, scale)
        cv2.copyTo(_scaled(colors, self.shadow[window]), shows, self.canvas[window])
        np.maximum(self.covered[window], shows, out=self.covered[window])
        visible = np.zeros_like(self.covered)
        visible[window] = shows
        return visible

    def creature(self, label: int, foot: tuple[float, float], height: float) -> SceneObject | None:
        """Paint an object of a class standing at ``foot``; None, and no paint, if too little would show."""
        parts = deform(self.rng, CREATURES[CLASSES[label]](self.rng))
        if self.deformation > 0:
            parts = contort(self.contortions, parts, self.deformation)
        visible = self.paint(parts, foot, height, self.light, least=0.4)
        if visible is None:
            return None
        if self.rng.random() < 0.6:
            axes = (int(height * self.rng.uniform(0.3, 0.5)), int(height * 0.07))
            shade = np.full_like(self.shadow, 128)
            cv2.ellipse(shade, (int(foot[0]), int(foot[1])), axes, 0, 0, 360, int(self.rng.integers(50, 110)), -1)
            np.minimum(self.shadow, shade, out=self.shadow)
        return SceneObject(label, visible)

    def clutter(self, count: int) -> None:
        """Paint shapes that belong to no class, and loose parts of those that do, turned and lit from any side."""
        rng = self.rng
        for _ in range(count):
            kind = rng.integers(4)
            if kind == 0:
                outline = blob(rng, 0, 0, 1, rng.uniform(0.3, 1), wobble=0.15)
                parts: list[BodyPart] = [(outline, 0), (outline * 0.5, 1)][: rng.integers(1, 3)]
            elif kind == 1:
                start, bend, end = rng.uniform(-1.6, 1.6, (3, 2))
                parts = [(limb(start, bend, end, rng.uniform(0.15, 0.4), rng.uniform(0.05, 0.3)), 0)]
            elif kind == 2:
                parts = [(rng.uniform(-1, 1, (rng.integers(3, 6), 2)), 0)]
            else:
                whole = CREATURES[CLASSES[rng.integers(len(CLASSES))]](rng)
                first = rng.integers(len(whole))
                parts = whole[first : first + rng.integers(1, 4)]
                middle = np.concatenate([outline for outline, _ in parts]).mean(0)
                parts = [((outline - middle) * 2.5, material) for outline, material in parts]
            turn, side = rng.uniform(0, 2 * math.pi, 2)
            parts = [(outline @ rotation(turn), material) for outline, material in parts]
            light = (40 * math.sin(side), 40 * math.cos(side))
            place = (rng.uniform(0, self.size), rng.uniform(0, self.size))
            self.paint(parts, place, self.size * rng.uniform(0.03, 0.16), light, least=0.0)

    def background(self) -> None:
        """Fill what no shape covers: one surface, or two that meet along a wavy line in any direction."""
        rng, size = self.rng, self.size // FINE
        image = self.surface(size)
        if rng.random() < 0.6:
            angle = rng.uniform(0, 2 * math.pi)
            x = np.arange(size) - size * rng.uniform(0.25, 0.75)
            across = (x * math.cos(angle) + x[:, None] * math.sin(angle)) * 8
            beyond = (across > self.noise(size, size, 5) - 128.0).astype(np.uint8)
            cv2.copyTo(self.surface(size), beyond, image)
        image = cv2.resize(image, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_NEAREST)
        cv2.copyTo(_scaled(image, self.shadow), ~self.covered, self.canvas)


def _scaled(colors: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    brightness = brightness.astype(np.uint8)
    return cv2.multiply(colors, cv2.merge([brightness] * 3), scale=1 / 128)


def draw_scene(seed: int, *, size: int = 128, deformation: float = 0.0) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw one scene: up to seven objects of six classes among clutter on a textured background.

    Args:
        seed: all there is to know about the scene.
        size: side in pixels.
        deformation: how strongly objects bend, stretch and turn, in [0, 1].

    Returns:
        The image, ``(size, size, 3)`` uint8 RGB, and its objects from front to back.
    """
    scene = Scene(seed, size, deformation)
    rng = scene.rng
    scene.clutter(int(rng.integers(0, 3)))
    objects = []
    for foot in np.sort(rng.uniform(0.3, 1.05, rng.integers(1, 8)))[::-1]:
        height = scene.size * 0.16 * 5 ** rng.uniform()
        place = (rng.uniform(0.05, 0.95) * scene.size, max(foot * scene.size, 0.8 * height))
        found = scene.creature(int(rng.integers(len(CLASSES))), place, height)
        objects += [found] if found else []
        scene.clutter(int(rng.integers(0, 2)))
    scene.clutter(int(rng.integers(2, 6)))
    scene.background()
    return cv2.resize(scene.canvas, (size, size), interpolation=cv2.INTER_AREA), objects

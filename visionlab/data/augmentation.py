"""Random changes of images by albumentations: ours, and any pipeline of its transforms. No other file imports it."""

from __future__ import annotations

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from visionlab.checks import check_in
from visionlab.seeding import derive_seed
from visionlab.settings import Settings


@cache
def albumentations() -> Any:
    """Import albumentations, which takes a second, when images are to be changed."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for a newer version
    import albumentations

    return albumentations


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings):
    """Random changes that any image may undergo.

    Args:
        flip: probability of a horizontal mirror image.
        color_strength: how strongly brightness, contrast, saturation and hue are changed, up to 2.5; 0 not.
        extra: further transforms of albumentations, in its own serialized form: a list of entries such as
            ``{__class_fullname__: Rotate, limit: 10, p: 0.5}``, for which ``{transform: Rotate, limit: 10}`` is short,
            or what ``albumentations.to_dict`` gives; in Python also the transforms themselves.
    """

    flip: float = 0.5
    color_strength: float = 0.0
    extra: list[Any] | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_in("[0, 1]", flip=self.flip)
        check_in("[0, 2.5]", color_strength=self.color_strength)
        self.extra_steps()

    def extra_steps(self) -> list[Any]:
        """Return the transforms of ``extra``, new ones at each call.

        Raises:
            ValueError: an entry is no transform of albumentations, or has a parameter that it refuses.
        """
        if self.extra is None:
            return []
        steps: list[Any] = []
        for number, entry in enumerate(self.extra if isinstance(self.extra, list) else [self.extra], start=1):
            step = _step(entry, f"extra: entry {number}")
            whole = isinstance(step, albumentations().Sequential) and step.p == 1
            steps += step.transforms if whole else [step]
        return steps

    def refuse_extra(self, names: Collection[str], reason: str) -> None:
        """Refuse transforms that would spoil what is learned.

        Args:
            names: of the transforms.
            reason: why they would.
        """
        found = [type(leaf).__name__ for leaf in leaves(self.extra_steps()) if type(leaf).__name__ in names]
        if found:
            raise ValueError(f"extra: expected transforms other than {found[0]}, {reason}")


class Pipeline:
    """Transforms of albumentations, each call a pure function of the image and a seed.

    Args:
        make: returns the transforms; called with the first image, so that a pipeline alone does not import them.
        boxes: settings of ``albumentations.BboxParams``, if there are boxes.
    """

    def __init__(self, make: Callable[[], list[Any]], boxes: Mapping[str, Any] | None = None) -> None:
        self._make, self._boxes, self._compose = make, boxes, None

    def seeded(self, seed: int) -> tuple[Any, random.Random]:
        """Return the ``albumentations.Compose`` whose next call depends on a seed alone, and the generator it uses."""
        if self._compose is None:
            A = albumentations()
            steps, boxes = self._make(), None
            if self._boxes is not None:
                boxes = A.BboxParams(**self._boxes)
                if not any(isinstance(leaf, A.DualTransform) for leaf in leaves(steps)):
                    steps = [*steps, A.NoOp()]  # it warns of boxes that no transform looks at
            self._compose = A.Compose(steps, bbox_params=boxes)
        return self._compose, seed_transform(self._compose, seed)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return an ``(H, W, 3)`` uint8 image, changed."""
        return self.seeded(seed)[0](image=image)["image"]


def seed_transform(transform: Any, seed: int) -> random.Random:
    """Make the next call of a transform a pure function of ``seed``; return the generator that it draws from.

    ``Compose.set_random_seed`` would give each step a generator of its own with the same seed, so that the images that
    are flipped would be the very ones that lose their color. Here the steps take turns at one generator.
    """
    generator = random.Random(seed)
    transform.set_random_state(np.random.default_rng(seed), generator)
    return generator


def extra_seed(seed: int) -> int:
    """Return the seed of the extra transforms of an image or view: with or without them, all else stays the same."""
    return derive_seed(seed, "extra")


def color_jitter(strength: float) -> list[Any]:
    """Return the step that changes brightness, contrast, saturation and hue of four images in five; none at strength 0.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
    arXiv:2002.05709, appendix A (there the strength is 1).
    """
    if not strength:
        return []
    return [albumentations().ColorJitter(*(strength * s for s in (0.8, 0.8, 0.8, 0.2)), p=0.8)]


def flip_step(probability: float) -> list[Any]:
    """Return the step that mirrors an image from left to right; none at probability 0."""
    return [albumentations().HorizontalFlip(p=probability)] if probability else []


def leaves(steps: list[Any]) -> Iterator[Any]:
    """Yield transforms, and those inside of transforms that choose among others."""
    for step in steps:
        if isinstance(step, albumentations().BaseCompose):
            yield from leaves(list(step.transforms))
        else:
            yield step


def check_results(steps: list[Any], shape: tuple[int, int], *, boxes: bool) -> None:
    """Refuse transforms after which an image is none any more, by a trial of each.

    Args:
        steps: the transforms.
        shape: height and width of the trial image.
        boxes: whether boxes are to follow, and the size may change; else the size must stay.

    Raises:
        ValueError: a transform fails, moves pixels but not boxes, or gives another size, type or number of channels.
    """
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for leaf in leaves(steps):
        A, name = albumentations(), type(leaf).__name__
        moves = isinstance(leaf, A.DualTransform)
        if boxes and moves and not any(target.name == "BBOXES" for target in leaf._targets):
            raise ValueError(f"extra: expected transforms that boxes follow, got {name}")
        trial = deepcopy(leaf)
        trial.p = 1.0
        pipeline = Pipeline([trial].copy, BOXES if boxes else None)
        inputs = {"bboxes": np.array([[1.0, 1.0, shape[1] - 1, shape[0] - 1]]), "index": [0]} if boxes else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = pipeline.seeded(0)[0](image=image, **inputs)["image"]
        except Exception as error:
            if type(error).__name__ == "CropSizeError":  # the images themselves may be larger
                continue
            size = f"{shape[0]} x {shape[1]} pixels"
            raise ValueError(f"extra: {name} fails on an image of {size}: {_line(error)}") from None
        good = isinstance(result, np.ndarray) and result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3
        if not good or not (boxes or result.shape == image.shape):
            found = f"{getattr(result, 'dtype', type(result).__name__)} {tuple(getattr(result, 'shape', ()))}"
            expected = "uint8 images of 3 channels" + ("" if boxes else " and the same size")
            raise ValueError(f"extra: expected transforms that give {expected}, {name} gives {found}")


BOXES = {"format": "pascal_voc", "label_fields": ["index"], "clip": True, "filter_invalid_bboxes": True}
"""How boxes go through a pipeline, as settings of ``albumentations.BboxParams``."""


def _step(entry: Any, place: str) -> Any:
    """Return the transform that an entry of ``extra`` describes, or is."""
    A = albumentations()
    if isinstance(entry, A.Compose):
        return A.Sequential(deepcopy(list(entry.transforms)), p=entry.p)
    if isinstance(entry, A.BasicTransform | A.BaseCompose):
        return deepcopy(entry)
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place}: expected a transform of albumentations or what describes it, got {entry!r}")
    if isinstance(entry.get("transform"), Mapping):  # the whole that to_dict gives
        return _step(entry["transform"], place)
    settings = {key: value for key, value in entry.items() if key not in ("__class_fullname__", "transform")}
    name = entry.get("__class_fullname__", entry.get("transform"))
    kind = _kind(name, place)
    if "transforms" in settings:
        if not isinstance(settings["transforms"], list):
            raise ValueError(f"{place}: {name}: transforms: expected a list, got {settings['transforms']!r}")
        settings["transforms"] = [_step(inner, place) for inner in settings["transforms"]]
    if kind is A.Compose:
        return A.Sequential(settings.get("transforms", []), p=settings.get("p", 1.0))
    known = [parameter for parameter in inspect.signature(kind.__init__).parameters if parameter != "self"]
    for key in settings:
        if key not in known:
            raise ValueError(f"{place}: {name}: expected one of {', '.join(known)}, got {key}{_nearest(key, known)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # by which it tells that it ignores a parameter
            return kind(**settings)
    except (TypeError, ValueError, UserWarning) as error:
        raise ValueError(f"{place}: {name}: {_line(error)}") from None


def _kind(name: Any, place: str) -> Any:
    A = albumentations()
    kinds = {
        key: kind
        for key, kind in vars(A).items()
        if inspect.isclass(kind) and issubclass(kind, A.BasicTransform | A.BaseCompose) and not key.startswith("Base")
    }
    short = str(name).rpartition(".")[2]
    ours = isinstance(name, str) and ("." not in name or name.startswith("albumentations."))
    if not ours or short not in kinds:
        near = _nearest(short, kinds)
        raise ValueError(f"{place}: expected the name of a transform of albumentations, got {name!r}{near}")
    return kinds[short]


def _nearest(word: str, words: Collection[str]) -> str:
    by_lower = {each.lower(): each for each in words}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f". Did you mean {by_lower[close[0]]}?" if close else ""


def _line(error: BaseException) -> str:
    """Return what an error says, in one line; of pydantic's, parameter and message alone."""
    if isinstance(error.__cause__, ValidationError):
        found = [(".".join(map(str, each["loc"][:1])), each["msg"]) for each in error.__cause__.errors()]
        return "; ".join(dict.fromkeys(f"{name}: {message}" if name else message for name, message in found))
    return " ".join(str(error).split()) or type(error).__name__

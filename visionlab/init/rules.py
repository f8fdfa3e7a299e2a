"""The rules that choose the settings of a first config, each a function of what was found in the data.

They aim at a sound first run, in a quarter of an hour on a CPU or in a night on one GPU, not at the best result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionlab.init.survey import Objects, Survey


class Choice(NamedTuple):
    """Settings, and why they are what they are."""

    settings: dict[str, Any]
    why: str


@dataclass(frozen=True)
class Budget:
    """What a machine allows.

    Args:
        device: CPU or GPU, for comments.
        short_side: least and largest short side of the detector's images, in pixels.
        pixels: the most pixels of an image of the detector.
        object_side: pixels that small objects should keep.
        batch: labelled images of a step.
        pretrain_batch: unlabelled images of a step.
        crop: side of the views to pretrain on, in pixels.
        pixels_trained: pixels that the detector may see in the whole run, the cost of it.
        steps: least and largest number of steps of the detector.
        pretrain_steps: the same of the pretraining.
    """

    device: str
    short_side: tuple[int, int]
    pixels: int
    object_side: int
    batch: int
    pretrain_batch: int
    crop: int
    pixels_trained: float
    steps: tuple[int, int]
    pretrain_steps: tuple[int, int]


CPU = Budget(
    device="a CPU",
    short_side=(224, 320),
    pixels=320 * 320,
    object_side=12,
    batch=4,
    pretrain_batch=32,
    crop=64,
    pixels_trained=3e8,
    steps=(300, 3000),
    pretrain_steps=(100, 300),
)
GPU = Budget(
    device="a GPU",
    short_side=(480, 800),
    pixels=800 * 1333,
    object_side=16,
    batch=8,
    pretrain_batch=128,
    crop=224,
    pixels_trained=4e11,
    steps=(3000, 90_000),
    pretrain_steps=(2000, 100_000),
)

EPOCHS = 100
"""More than so many times through the same images teaches a detector, or an encoder, little."""

# --- the images ------------------------------------------------------------------------------------------------------


def transform(survey: Survey, budget: Budget) -> Choice:
    """Choose the size of the detector's images: small objects keep some pixels, and the machine can afford it."""
    short, long = survey.sizes.min(axis=1), survey.sizes.max(axis=1)
    usual, small = float(np.median(short)), small_side(survey)
    least, most = budget.short_side
    wanted = max(least, usual * budget.object_side / small)
    affordable = math.sqrt(budget.pixels / np.median(long / short))
    side = max(32, int(min(wanted, most, affordable, 2 * usual)) // 16 * 16)
    longest = side * np.clip(np.quantile(long / short, 0.9), 4 / 3, 2)
    why = (
        f"images are {np.median(long):.0f} x {usual:.0f}; small objects have {small:.0f} pixels, which become "
        f"{small * side / usual:.0f}; {budget.device} can afford {least} to {most}"
    )
    return Choice({"short_side": side, "max_size": math.ceil(longest / 32) * 32}, why)


def small_side(survey: Survey) -> float:
    """Return the size of small objects, the root of their area, in pixels of the file.

    One object in ten is smaller, or half of those of a class that is at least one object in a hundred, because all
    classes count alike in the mean AP.
    """
    if survey.objects is None:
        return float(np.median(survey.sizes.min(axis=1)))
    sides, labels = _sides(survey.objects), survey.objects.labels
    classes = [sides[labels == label] for label in np.unique(labels)]
    usual = [np.median(each) for each in classes if len(each) >= len(sides) / 100]
    return max(1.0, float(min(np.quantile(sides, 0.1), *usual)))


def _sides(objects: Objects) -> NDArray[np.float64]:
    return np.sqrt(objects.boxes.prod(axis=1))


def scale(survey: Survey, short_side: int) -> float:
    """Return by what the sides of most images are multiplied."""
    return float(short_side / np.median(survey.sizes.min(axis=1)))


# --- the detector ----------------------------------------------------------------------------------------------------


def backbone(budget: Budget) -> Choice:
    """Choose the network, the same for pretraining and detection, so that its weights fit."""
    if budget is CPU:
        half = {"name": "resnet18", "norm": "train", "options": {"channels": [32, 64, 128, 256]}}
        return Choice(
            half, "half as wide as usual, for more steps in the time; on a GPU resnet50; BatchNorm trains in both runs"
        )
    return Choice(
        {"name": "resnet50", "norm": "sync"}, "on a CPU a resnet18 of half its width; BatchNorm trains in both runs"
    )


def strides(survey: Survey, short_side: int) -> Choice:
    """Choose the finest level that the detector looks at by the small objects."""
    if small_side(survey) * scale(survey, short_side) < 32:
        return Choice({}, "")
    return Choice(
        {"strides": [8, 16, 32]}, "stride 4, which costs most, is left out: objects are larger than 32 pixels"
    )


def rpn(survey: Survey, short_side: int, levels: list[int], budget: Budget) -> Choice:
    """Choose anchors by the sizes and shapes of objects: those of the finest level fit the small ones.

    Args:
        survey: with objects.
        short_side: of the detector's images, in pixels.
        levels: strides of the pyramid.
        budget: what the machine allows.
    """
    assert survey.objects is not None
    small = small_side(survey) * scale(survey, short_side)
    large = float(np.quantile(_sides(survey.objects), 0.9)) * scale(survey, short_side)
    # Where an anchor is smaller than two strides, objects lie between its places.
    first = float(np.clip(small, 2 * levels[0], 8 * levels[0]))
    growth = float(np.clip((large / first) ** (1 / (len(levels) - 1)), 2, 3))
    settings: dict[str, Any] = {"anchor_sizes": [[round(first * growth**level)] for level in range(len(levels))]}
    why = f"objects have {small:.0f} to {large:.0f} pixels then, and no anchor has under two strides"
    low, high = np.quantile(survey.objects.boxes[:, 0] / survey.objects.boxes[:, 1], [0.1, 0.9]).clip(0.1, 10)
    if low < 0.4 or high > 2.5:
        settings["anchor_ratios"] = sorted({round(float(min(low, 0.5)), 2), 1.0, round(float(max(high, 2.0)), 2)})
        why += f"; their height over width is {low:.2f} to {high:.2f}"
    if budget is CPU:
        proposals = max(300, min(1000, 4 * survey.objects.most))
        settings |= {"train_proposals": proposals, "test_proposals": proposals, "samples_per_image": 128}
        why += f"; up to {survey.objects.most} objects an image"
    return Choice(settings, why)


def head(survey: Survey, budget: Budget) -> Choice:
    """Choose the head's size by the budget, and how many detections it may give by the fullest image."""
    assert survey.objects is not None
    settings: dict[str, Any] = {}
    reasons = []
    if budget is CPU:
        settings = {"fc_channels": 256, "samples_per_image": 128, "canonical_size": 112}
        reasons.append("objects of 112 pixels are looked at at stride 16, 7 x 7 cells")
    if survey.objects.most > 100:
        settings["max_detections"] = math.ceil(survey.objects.most * 1.25 / 100) * 100
        reasons.append(f"up to {survey.objects.most} objects an image")
    return Choice(settings, "; ".join(reasons))


# --- training --------------------------------------------------------------------------------------------------------


def validation(objects: Objects) -> Choice:
    """Choose which images are evaluated on."""
    if objects.val_images:
        return Choice({}, f"{objects.images} images to train on, {objects.val_images} to evaluate on")
    if objects.photos < 2:
        return Choice({}, "all images are of one photo: none are left to evaluate on")
    fraction = round(min(0.2, 1000 / objects.images), 3)
    return Choice(
        {"val_fraction": fraction}, "a fifth, at most 1000 images, to evaluate on; copies of a photo stay together"
    )


def detect_training(survey: Survey, budget: Budget, short_side: int) -> dict[str, Choice]:
    """Choose batch, steps, evaluations and learning rate of the detector, by section."""
    objects = survey.objects
    assert objects is not None
    held_out = round(objects.images * validation(objects).settings.get("val_fraction", 0))
    images, val_images = max(1, objects.images - held_out), objects.val_images or held_out
    batch = min(budget.batch, images)
    pixels = float(np.median(survey.sizes.prod(axis=1))) * scale(survey, short_side) ** 2
    steps = _steps(min(budget.pixels_trained / pixels, EPOCHS * images) / batch, budget.steps)
    train: dict[str, Any] = {"steps": steps, "clip_norm": 10, "channels_last": True}
    why = _why_steps(steps, batch, images, budget.steps)
    # Evaluating an image costs a third of training on it; a quarter of the time may go into it.
    times = min(4, int(0.75 * steps * batch / val_images)) if val_images else 0
    if times > 1:
        train["evaluate_every"] = math.ceil(steps / times)
        why += f"; {times} evaluations, the best weights are kept"
    if budget is CPU:
        loader = Choice({"batch_size": batch, "workers": 1}, "on a GPU 8 images")
        rate = {"name": "adamw", "lr": _rate(5e-4, batch, 4), "weight_decay": 0.05}
        optimizer = Choice(rate, "5e-4 for 4 images a step, by the root of the batch for fewer")
    else:
        loader = Choice({"batch_size": batch, "workers": 8}, "fits 24 GB; on a CPU 4 images")
        train["precision"] = "bf16"
        optimizer = Choice(
            {"name": "sgd", "lr": round(0.02 * batch / 16, 5)}, "0.02 for 16 images a step, in proportion to the batch"
        )
    return {"loader": loader, "train": Choice(train, why), "optimizer": optimizer, **_periods(steps)}


def pretrain_training(survey: Survey, budget: Budget) -> dict[str, Choice]:
    """Choose views, batch, steps and learning rate of the pretraining, by section."""
    batch = min(budget.pretrain_batch, survey.images)
    steps = _steps(EPOCHS * survey.images / batch, budget.pretrain_steps)
    pretext: dict[str, Any] = {"name": "simclr", "image_size": budget.crop, "crop_scale": [0.2, 1.0]}
    train: dict[str, Any] = {"steps": steps, "channels_last": True}
    why = "crops of one image belong together: asks for no upright direction and no center"
    if budget is CPU:
        pretext |= {"color_strength": 0.2, "grayscale": 0.0, "blur": 0.0, "hidden_dim": 512}
        why += f"; mild changes of color, as few steps learn only what is easy; on a GPU {GPU.crop} pixels"
    else:
        train["precision"] = "bf16"
    rate = {"name": "adamw", "lr": _rate(5e-4, batch, budget.pretrain_batch), "weight_decay": 0.05}
    workers = 1 if budget is CPU else 8
    return {
        "pretext": Choice(pretext, why),
        "loader": Choice({"batch_size": batch, "workers": workers}, "an image is told from the others of its batch"),
        "train": Choice(train, _why_steps(steps, batch, survey.images, budget.pretrain_steps)),
        "optimizer": Choice(
            rate, f"5e-4 for {budget.pretrain_batch} images a step, by the root of the batch for fewer"
        ),
        **_periods(steps),
    }


def _steps(wanted: float, bounds: tuple[int, int]) -> int:
    """Return a number of steps between two bounds, in tens, above a thousand in hundreds."""
    steps = min(max(wanted, bounds[0]), bounds[1])
    unit = 10 if steps < 1000 else 100
    return max(bounds[0], int(steps / unit) * unit)


def _why_steps(steps: int, batch: int, images: int, bounds: tuple[int, int]) -> str:
    times = steps * batch / images
    seen = f"{times:.{0 if times >= 10 else 1}f} times through {images} images"
    return f"{seen}: as time allows, at most {EPOCHS} times, but at least {bounds[0]} steps"


def _periods(steps: int) -> dict[str, Choice]:
    warmup = min(1000, steps // 10)
    share = "a tenth of the" if warmup < 1000 else "1000"
    return {
        "schedule": Choice({"name": "cosine", "warmup_steps": warmup}, f"{share} steps to warm up"),
        "checkpoints": Choice({"every": math.ceil(steps / 4)}, "a run that is killed loses a quarter at most"),
    }


def _rate(lr: float, batch: int, usual: int) -> float:
    return float(f"{lr * math.sqrt(batch / usual):.2g}")

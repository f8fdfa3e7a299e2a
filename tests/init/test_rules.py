"""The rules of first configs, on data of every size."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from visionlab.config.load import load
from visionlab.init import rules
from visionlab.init.rules import CPU, EPOCHS, GPU
from visionlab.init.survey import Objects, Survey
from visionlab.init.write import detect_config, pretrain_config


def found(images=200, size=(480, 640), sides=((20, 200),), most=10, val_images=0, ratio=1.0):
    """Images of one size; of each class as many objects, their sides from the first to the second number."""
    roots = np.concatenate([np.linspace(*pair, 50) for pair in sides])
    objects = Objects(
        classes=[f"class {n}" for n in range(len(sides))],
        boxes=np.stack([roots * ratio**0.5, roots / ratio**0.5], axis=1),
        labels=np.repeat(np.arange(len(sides)), 50),
        most=most,
        images=images,
        val_images=val_images,
        photos=0 if val_images else images,
    )
    return Survey("some folder", ("COCO json",), images, np.tile(np.array(size, float), (images, 1)), objects)


EXTREMES = {
    "one class": found(),
    "80 classes": found(5000, sides=[(10, 300)] * 80, val_images=500),
    "tiny objects": found(sides=[(3, 6)]),
    "huge images": found(300, (6000, 9000), [(30, 900)]),
    "tiny images": found(1000, (32, 32), [(8, 30)]),
    "long images": found(300, (500, 5000)),
    "5 images": found(5),
    "2 images": found(2),
    "50,000 images": found(50_000, val_images=5000),
    "500 objects an image": found(most=500),
    "flat objects": found(ratio=0.1),
    "objects as large as images": found(sides=[(400, 480)]),
}


@pytest.mark.parametrize("budget", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_data_gives_configs_that_are_sound_and_short(name, budget, tmp_path):
    survey, runs = EXTREMES[name], Path("my run")
    for task, text in (
        ("pretrain", pretrain_config(survey, runs, budget)),
        ("detect", detect_config(survey, runs, budget)),
    ):
        lines = text.splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 120
        assert yaml.safe_load(text)["data"]["root"] == "some folder"
        (tmp_path / f"{task}.yaml").write_text(text)
    pretrain, detect = (load(tmp_path / f"{task}.yaml") for task in ("pretrain", "detect"))
    assert detect.weights == f"{pretrain.out}/backbone.safetensors"
    assert detect.data.classes == survey.objects.classes
    shared = ("name", "norm", "options", "frozen_stages")
    assert [getattr(pretrain.backbone, key) for key in shared] == [getattr(detect.backbone, key) for key in shared]
    assert detect.head.max_detections >= survey.objects.most
    assert 1 <= pretrain.loader.batch_size <= survey.images
    assert 1 <= detect.loader.batch_size <= survey.objects.images
    for run in (pretrain, detect):
        assert 0 < run.schedule.warmup_steps < run.train.steps
        assert run.train.steps / 5 <= run.checkpoints.every <= run.train.steps
    if detect.train.evaluate_every:
        assert detect.train.steps / 5 < detect.train.evaluate_every <= detect.train.steps / 2


@pytest.mark.parametrize(("budget", "least"), [(CPU, 12), (GPU, 16)], ids=["cpu", "gpu"])
def test_small_objects_keep_their_pixels_where_the_machine_can_afford_it(budget, least):
    for sides in ((10, 40), (30, 200), (100, 300)):
        survey = found(sides=[sides])
        settings = rules.transform(survey, budget).settings
        side = settings["short_side"]
        assert budget.short_side[0] <= side <= budget.short_side[1]
        assert side * side * 4 / 3 <= budget.pixels
        kept = rules.small_side(survey) * rules.scale(survey, side)
        affordable = min(budget.short_side[1], (budget.pixels * 3 / 4) ** 0.5, 2 * 480)
        assert kept >= least * 0.9 or side >= affordable - 16
        assert settings["max_size"] >= side * 4 / 3


def test_images_are_enlarged_twice_at_most():
    assert rules.transform(found(size=(100, 120), sides=[(4, 9)]), GPU).settings["short_side"] == 192


def test_a_rare_class_of_small_objects_counts():
    """One class in ten is small: the tenth part of all objects does not show it."""
    assert rules.small_side(found(sides=[(100, 120)] * 19 + [(10, 20)])) == pytest.approx(15)
    assert rules.small_side(found(sides=[(100, 120)])) == pytest.approx(102, abs=0.5)
    assert rules.small_side(replace(found(), objects=None)) == 480


@pytest.mark.parametrize(("low", "high"), [(4, 8), (10, 60), (20, 400), (150, 160), (300, 450)])
def test_anchors_reach_from_small_to_large_objects(low, high):
    survey = found(sides=[(low, high)])
    for levels in ([4, 8, 16, 32, 64], [8, 16, 32, 64]):
        sizes = [size for (size,) in rules.rpn(survey, 480, levels, CPU).settings["anchor_sizes"]]
        assert len(sizes) == len(levels)
        assert all(size >= 2 * stride for size, stride in zip(sizes, levels, strict=True))
        assert all(1.9 <= after / before <= 3.1 for before, after in itertools.pairwise(sizes))
        assert sizes[0] <= max(2 * levels[0], 1.2 * low + 0.1 * (high - low))
        assert sizes[-1] >= min(0.8 * high, 3 * sizes[-2])


def test_levels_and_shapes_follow_the_objects():
    assert rules.strides(found(sides=[(60, 90)]), 480).settings == {"strides": [8, 16, 32]}
    assert rules.strides(found(sides=[(60, 90)]), 224).settings == {}
    levels = [4, 8, 16, 32, 64]
    assert "anchor_ratios" not in rules.rpn(found(ratio=0.6), 480, levels, GPU).settings
    assert rules.rpn(found(ratio=0.2), 480, levels, GPU).settings["anchor_ratios"] == [0.2, 1.0, 2.0]
    assert rules.rpn(found(ratio=4), 480, levels, GPU).settings["anchor_ratios"] == [0.5, 1.0, 4.0]
    assert rules.rpn(found(most=5), 480, levels, CPU).settings["train_proposals"] == 300
    assert rules.rpn(found(most=200), 480, levels, CPU).settings["test_proposals"] == 800
    assert "max_detections" not in rules.head(found(most=100), GPU).settings
    assert rules.head(found(most=318), GPU).settings["max_detections"] == 400


def test_steps_follow_images_and_time():
    few, many = (rules.detect_training(found(n, val_images=20), CPU, 240)["train"].settings for n in (5, 5000))
    assert few["steps"] == CPU.steps[0]
    assert many["steps"] * 4 * 240 * 320 == pytest.approx(CPU.pixels_trained, rel=0.1)
    some = rules.detect_training(found(20, val_images=20), CPU, 240)["train"].settings["steps"]
    assert some * 4 / 20 == pytest.approx(EPOCHS, rel=0.1)
    assert rules.pretrain_training(found(50_000), CPU)["train"].settings["steps"] == 300
    assert rules.pretrain_training(found(50_000), GPU)["train"].settings["steps"] == 39_000


def test_evaluations_cost_no_more_than_a_quarter():
    assert rules.detect_training(found(val_images=20), CPU, 240)["train"].settings["evaluate_every"] == 243
    assert "evaluate_every" not in rules.detect_training(found(val_images=5000), CPU, 240)["train"].settings


def test_learning_rates_follow_the_batch():
    rate = {n: rules.detect_training(found(n, val_images=9), CPU, 240)["optimizer"].settings["lr"] for n in (1, 4, 100)}
    assert rate == {1: 2.5e-4, 4: 5e-4, 100: 5e-4}
    assert rules.detect_training(found(), GPU, 480)["optimizer"].settings == {"name": "sgd", "lr": 0.01}
    assert rules.pretrain_training(found(8), CPU)["optimizer"].settings["lr"] == 2.5e-4


def test_what_is_evaluated_on():
    objects = found(50_000).objects
    assert rules.validation(objects).settings == {"val_fraction": 0.02}
    assert rules.validation(found(100).objects).settings == {"val_fraction": 0.2}
    assert rules.validation(replace(objects, photos=1)).settings == {}
    assert rules.validation(replace(objects, val_images=7)).settings == {}

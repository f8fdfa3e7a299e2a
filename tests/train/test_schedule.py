import math

import pytest
import torch
from torch.optim import lr_scheduler

from visionlab.train.schedule import SCHEDULES, constant, cosine, multistep


def torch_factors(scheduler, steps):
    """Return the learning rates that one of torch's schedulers gives an optimizer of learning rate 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    stepper = scheduler(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        stepper.step()
    return factors


def warmed_cosine(optimizer):
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)
    decay = lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.02)
    return lr_scheduler.SequentialLR(optimizer, [warmup, decay], milestones=[10])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (constant(50), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (
            constant(50, warmup_steps=10, warmup_factor=0.1),
            lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=10),
        ),
        (cosine(50), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=50)),
        (cosine(50, warmup_steps=10, warmup_factor=0.1, final_factor=0.02), warmed_cosine),
        (cosine(50, restart_every=15), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=15)),
        (multistep(50, milestones=[20, 40], gamma=0.3), lambda o: lr_scheduler.MultiStepLR(o, [20, 40], gamma=0.3)),
    ],
)
def test_factors_are_those_of_torch(ours, theirs):
    assert [ours(step) for step in range(50)] == pytest.approx(torch_factors(theirs, 50), rel=1e-6, abs=1e-12)


def test_closed_forms():
    assert cosine(100)(50) == pytest.approx(0.5)
    assert cosine(100)(100) == 0
    assert cosine(100)(500) == 0
    assert cosine(110, warmup_steps=10)(35) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    factor = multistep(100, milestones=[50], warmup_steps=4)
    assert [factor(step) for step in (0, 1, 2, 4, 49, 50)] == pytest.approx([0, 0.25, 0.5, 1, 1, 0.1])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("constant", {"warmup_steps": 10}, "warmup_steps: expected"),
        ("cosine", {"warmup_factor": 0.1}, "no effect without warmup_steps"),
        ("cosine", {"warmup_steps": 2, "warmup_factor": 1.0}, "warmup_factor: expected"),
        ("cosine", {"final_factor": 1.0}, "final_factor: expected"),
        ("cosine", {"restart_every": 0}, "restart_every: expected at least 1"),
        ("multistep", {"milestones": []}, "milestones: expected rising"),
        ("multistep", {"milestones": [0, 5]}, "milestones: expected rising"),
        ("multistep", {"milestones": [5, 4]}, "milestones: expected rising"),
        ("multistep", {"milestones": [4, 10]}, "milestones: expected rising"),
        ("multistep", {"milestones": [2], "warmup_steps": 3}, "milestones: expected rising"),
        ("multistep", {"milestones": [5], "gamma": 0.0}, "gamma: expected more than 0"),
    ],
)
def test_settings_without_sense_are_refused_in_one_line(name, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        SCHEDULES[name](10, **settings)
    assert "\n" not in str(error.value)

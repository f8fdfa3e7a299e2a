import pytest
import torch
from torch import nn

from visionlab.train.optim import OPTIMIZERS, adamw, sgd


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.backbone(images).mean((2, 3)))


def settings_of(module, optimizer):
    """Return (lr, weight decay) of each trainable parameter by name."""
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in module.named_parameters() if id(p) in by_id}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weights_decay_and_norms_and_biases_do_not(build):
    net = Net()
    assert settings_of(net, build(net, lr=0.5, weight_decay=0.1)) == {
        "backbone.0.weight": (0.5, 0.1),
        "backbone.0.bias": (0.5, 0.0),
        "backbone.1.weight": (0.5, 0.0),
        "backbone.1.bias": (0.5, 0.0),
        "head.weight": (0.5, 0.1),
        "head.bias": (0.5, 0.0),
    }
    everything = build(net, lr=0.5, weight_decay=0.1, decay_norm_and_bias=True)
    assert set(settings_of(net, everything).values()) == {(0.5, 0.1)}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_factors_reach_submodules_and_frozen_parameters_are_left_out(build):
    task = nn.ModuleDict({"model": Net()})
    task["model"].backbone[0].requires_grad_(False)
    optimizer = build(task, lr=0.5, weight_decay=0.0, lr_factors={"backbone": 0.1, "backbone.1": 0.2})
    assert settings_of(task, optimizer) == {
        "model.backbone.1.weight": (0.1, 0.0),
        "model.backbone.1.bias": (0.1, 0.0),
        "model.head.weight": (0.5, 0.0),
        "model.head.bias": (0.5, 0.0),
    }


class Deformable(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "layer1": nn.ModuleDict({"conv": nn.Linear(1, 1), "offset_conv": nn.Linear(1, 1)}),
                "stem": nn.Linear(1, 1),
            }
        )
        self.head = nn.ModuleDict({"offset_fc": nn.Linear(1, 1), "offsets": nn.Linear(1, 1)})


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"offset_*": 0.1}, [1, 0.1, 1, 0.1, 1]),
        ({"offset*": 0.1}, [1, 0.1, 1, 0.1, 0.1]),
        ({"offset_*": 0.1, "backbone": 0.5}, [0.5, 0.1, 0.5, 0.1, 1]),
        ({"backbone": 0.5, "backbone.*.offset_*": 0.1}, [0.5, 0.1, 0.5, 1, 1]),
        ({"backbone.*": 0.5, "backbone": 0.2}, [0.5, 0.5, 0.5, 1, 1]),
        ({"*er?": 0.5, "layer1": 0.2, "layer*": 0.3, "head": 0.1}, [0.2, 0.2, 1, 0.1, 0.1]),
        ({"*": 0.1, "backbone": 0.5}, [0.5, 0.5, 0.5, 0.1, 0.1]),
        ({"head.offsets": 0.5}, [1, 1, 1, 1, 0.5]),
    ],
    ids=str,
)
def test_factors_by_patterns(factors, expected):
    net = Deformable()
    found = settings_of(net, sgd(net, lr=1.0, lr_factors=factors))
    assert [rate for name, (rate, _) in found.items() if name.endswith("weight")] == expected


@pytest.mark.parametrize(
    "pattern", ["offset", "*.offset_*.*", "head.*.offsets", "weight", "offset_*.conv", "head*conv", ""]
)
def test_a_pattern_that_fits_nothing_is_refused(pattern):
    with pytest.raises(ValueError, match="no trainable parameter lies in a submodule named"):
        sgd(Deformable(), lr=1.0, lr_factors={pattern: 0.1})


@pytest.mark.parametrize(
    ("build", "plain", "settings"),
    [
        (sgd, torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.01, "nesterov": True}),
        (adamw, torch.optim.AdamW, {"betas": (0.8, 0.95), "weight_decay": 0.01}),
    ],
)
def test_updates_are_those_of_torch_without_groups(build, plain, settings):
    ours, theirs = Net(), Net()
    pairs = [
        (ours, build(ours, lr=0.1, decay_norm_and_bias=True, **settings)),
        (theirs, plain(theirs.parameters(), lr=0.1, **settings)),
    ]
    images = torch.rand(4, 3, 8, 8)
    for _ in range(3):
        for net, optimizer in pairs:
            net(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (sgd, {"lr": -1.0}, r"^lr: expected more than 0, got -1\.0$"),
        (sgd, {"lr": 0.1, "momentum": 5}, r"^momentum: expected a number in \[0, 1\), got 5$"),
        (sgd, {"lr": 0.1, "weight_decay": -1}, "^weight_decay: expected at least 0, got -1$"),
        (sgd, {"lr": 0.1, "lr_factors": {"first": -1}}, r"^lr_factors\.first: expected at least 0, got -1$"),
        (sgd, {"lr": 0.1, "momentum": 0, "nesterov": True}, "^nesterov: no effect without momentum$"),
        (adamw, {"lr": 0.1, "betas": (0.9, 1.0)}, r"^betas: expected numbers, each in \[0, 1\), got"),
    ],
)
def test_settings_out_of_range_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(Net(), **settings)


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="no trainable parameter lies in"):
        sgd(Net(), lr=0.1, lr_factors={"neck": 0.1})
    with pytest.raises(ValueError, match="no effect without weight_decay"):
        adamw(Net(), lr=0.1, weight_decay=0.0, decay_norm_and_bias=True)
    with pytest.raises(ValueError, match="all parameters are frozen"):
        sgd(Net().requires_grad_(False), lr=0.1)

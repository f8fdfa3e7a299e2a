"""Optimizers of timm by name: theirs bit for bit, resumed exactly, refused where a setting has no use."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay
from torch import nn

from visionlab.config.part import From, part_of
from visionlab.train.named_optimizers import OPTIMIZER, other_optimizer
from visionlab.train.optim import adamw, sgd


def usable(name: str) -> bool:
    try:
        return other_optimizer(name) is not None
    except ValueError:
        return False


NAMES = [name for name in list_optimizers() if usable(name)]
QUICK = {"sgd", "adamw", "lars", "lamb", "lion", "adafactor", "muon", "nadamw"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.backbone(images).mean((2, 3)))


def train(net, optimizer, steps, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        net(torch.rand(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_there_are_many():
    assert {"lars", "lamb", "lion", "adamw", "sgd", "nadamw", "adafactor", "muon"} < set(NAMES)
    assert len(NAMES) > 60


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_goes_on_bit_for_bit_from_a_checkpoint(name):
    build = other_optimizer(name)
    net = Net()
    optimizer = build(net, lr=0.01)
    train(net, optimizer, 3)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    again = Net()
    resumed = build(again, lr=0.01)
    again.load_state_dict(content["net"])
    resumed.load_state_dict(content["optimizer"])
    assert same(train(net, optimizer, 3, start=3), train(again, resumed, 3, start=3))
    assert all(parameter.isfinite().all() for parameter in again.parameters())


@pytest.mark.parametrize("name", ["lars", "lamb", "lion", "nadamw", "muon", "adan", "sgdw"])
def test_updates_are_those_of_timm(name):
    ours, theirs = Net(), Net()
    train(ours, OPTIMIZER.find(name)(ours, lr=0.01, weight_decay=0.05), 3)
    train(theirs, create_optimizer_v2(theirs, name, lr=0.01, weight_decay=0.05), 3)
    assert same(ours, theirs)


@pytest.mark.parametrize(
    ("build", "plain", "settings"),
    [
        (sgd, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
        (adamw, torch.optim.AdamW, {"weight_decay": 0.05}),
    ],
)
def test_rows_of_the_table_are_torchs_with_our_defaults(build, plain, settings):
    ours, theirs = Net(), Net()
    train(ours, build(ours, lr=0.1, decay_norm_and_bias=True), 3)
    train(theirs, plain(theirs.parameters(), lr=0.1, **settings), 3)
    assert same(ours, theirs)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adadelta", {"rho": 2.0}, "^rho: Invalid rho value: 2.0"),
        ("lion", {"betas": (0.9, 1.5)}, r"^betas: expected numbers, each in \[0, 1\)"),
        ("lamb", {"betas": (0.9, 2.0)}, r"^betas: expected numbers, each in \[0, 1\)"),
        ("lamb", {"lr": -1.0}, "^lr: expected more than 0"),
        ("lamb", {"weight_decay": -1.0}, "^weight_decay: expected at least 0"),
        ("lamb", {"layer_decay": 1.5}, r"^layer_decay: expected a number in \(0, 1\)"),
        ("lamb", {"layer_decay": 0.5}, "^layer_decay: no effect, no model of timm that says"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        OPTIMIZER.find(name)(Net(), **{"lr": 0.1} | settings)


def test_names_that_cannot_be_used_say_why():
    with pytest.raises(ValueError, match="adahessian needs second derivatives"):
        OPTIMIZER.find("adahessian")
    with pytest.raises(ValueError, match=r"torch\.optim:LBFGS asks for a function that computes the loss again"):
        OPTIMIZER.find("torch.optim:LBFGS")
    with pytest.raises(ValueError, match="bnbadam needs the package bitsandbytes"):
        OPTIMIZER.find("bnbadam")
    with pytest.raises(ValueError, match=r"expected sgd or adamw or another.*got 'lamp'; did you mean .*lamb"):
        OPTIMIZER.find("lamp")


def test_a_section_has_the_settings_of_the_optimizer_and_no_others():
    part = From(OPTIMIZER).own({"name": "lars"})
    assert {"lr", "weight_decay", "lr_factors", "layer_decay", "trust_coeff", "momentum", "nesterov"} < set(
        part.model_fields
    )
    assert not {"foreach", "betas", "params"} & set(part.model_fields)
    assert part.model_fields["trust_coeff"].annotation is float
    assert part.model_fields["trust_coeff"].description
    assert part_of(OPTIMIZER.find("lion"), "lion").model_fields["betas"].default == (0.9, 0.99)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_layer_decay_is_that_of_timm(model):
    whole = timm.create_model(model, num_classes=10)
    expected = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(whole, weight_decay=0.0, layer_decay=0.7)
        for parameter in group["params"]
    }
    # The same network without its classifier, with a head of another kind around it.
    task = nn.ModuleDict({"backbone": copy.copy(whole), "neck": nn.Linear(2, 2)})
    optimizer = adamw(task, lr=1.0, layer_decay=0.7, weight_decay=0.0)
    found = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in task.named_parameters():
        assert found[id(parameter)] == pytest.approx(expected.get(id(parameter), 1.0)), name
    assert min(found.values()) < 0.7


def test_layer_decay_without_a_classifier_counts_from_what_stands_on_the_backbone():
    from visionlab.models.backbone import Backbone

    backbone = Backbone(name="vit_tiny_patch16_224", image_size=32, options={"depth": 2})
    task = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    optimizer = sgd(task, lr=1.0, layer_decay=0.5, lr_factors={"backbone": 0.1})
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in task.named_parameters()}
    assert by_name["head.weight"] == 1.0
    assert by_name["backbone.model.blocks.1.mlp.fc1.weight"] == pytest.approx(0.05)
    assert by_name["backbone.model.blocks.0.mlp.fc1.weight"] == pytest.approx(0.025)
    assert by_name["backbone.model.patch_embed.proj.weight"] == pytest.approx(0.0125)

"""Backbones whose 3x3 convolutions are deformable."""

import json

import pytest
import torch
from safetensors import safe_open

from visionlab.models.backbone import Backbone
from visionlab.models.weights import load_weights, save_backbone
from visionlab.ops import DeformConv2dPack

NARROW = {"channels": [8, 16, 24, 32]}
PROVENANCE = {"method": "simclr", "steps": 1, "images": 6}


def resnet(**settings) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name="resnet18", options=NARROW, **settings)


def packs(backbone: Backbone) -> list[str]:
    return [name for name, module in backbone.model.named_modules() if isinstance(module, DeformConv2dPack)]


def test_features_stay_and_then_move():
    plain, deformable = resnet(), resnet(deform_stages=[3, 4])
    assert packs(deformable) == [
        f"layer{stage}.{block}.conv{conv}" for stage in (3, 4) for block in (0, 1) for conv in (1, 2)
    ]
    deformable.model.load_state_dict(plain.model.state_dict(), strict=False)
    images = torch.randn(2, 3, 70, 90)
    for ours, expected in zip(deformable.eval()(images), plain.eval()(images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)

    optimizer = torch.optim.SGD(deformable.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        deformable(images)[-1].square().mean().backward()
        optimizer.step()
    offsets = [value for name, value in deformable.model.named_parameters() if "offset_conv.weight" in name]
    assert len(offsets) == 8
    assert all(value.count_nonzero() > 0 for value in offsets)


@pytest.mark.parametrize("settings", [{}, {"deform_groups": 4}, {"deform_groups": 2, "deform_modulated": True}])
def test_dilated_convolutions_become_deformable(settings):
    """As res5 of Dai et al. 2017: with offsets of zero the dilated network, and the offsets look as far as it does."""
    plain = resnet(output_stride=16, norm="frozen")
    deformable = resnet(output_stride=16, norm="frozen", deform_stages=[4], **settings)
    last = deformable.model.layer4[1].conv2
    assert last.dilation == last.offset_conv.dilation == (2, 2)
    assert last.offset_conv.out_channels == 9 * settings.get("deform_groups", 1) * (
        3 if "deform_modulated" in settings else 2
    )
    deformable.model.load_state_dict(plain.model.state_dict(), strict=False)
    images = torch.randn(2, 3, 70, 90, dtype=torch.float64)
    for ours, expected in zip(deformable.double()(images), plain.double()(images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_all_kinds_of_stages_and_settings():
    bottlenecks = Backbone(name="resnet50", options=NARROW, deform_stages=[4], norm="frozen", frozen_stages=2)
    assert packs(bottlenecks) == [f"layer4.{block}.conv2" for block in range(3)]
    assert all(p.requires_grad for name, p in bottlenecks.model.named_parameters() if "offset_conv" in name)
    assert packs(resnet(deform_stages=[2], norm="group", strides=[4, 8]))


def test_weights_transfer_and_offsets_are_new(tmp_path):
    plain, deformable = resnet(), resnet(deform_stages=[4])
    with torch.no_grad():
        for value in plain.model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 1)
    save_backbone(plain, tmp_path / "plain.safetensors", provenance=PROVENANCE)
    report = load_weights(deformable, tmp_path / "plain.safetensors", min_matched=1.0)
    assert report.missing == []
    assert report.new == [
        f"layer4.{block}.conv{conv}.offset_conv.{kind}"
        for block in (0, 1)
        for conv in (1, 2)
        for kind in ("weight", "bias")
    ]
    assert "; new 8 (layer4.0.conv1.offset_conv.weight" in str(report)
    state = deformable.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.model.state_dict().items())

    with torch.no_grad():
        state["layer4.1.conv2.offset_conv.bias"].fill_(0.5)
    save_backbone(deformable, tmp_path / "deformable.safetensors", provenance=PROVENANCE)
    with safe_open(tmp_path / "deformable.safetensors", framework="pt") as file:
        settings = json.loads(file.metadata()["settings"])
    again = Backbone(**settings)
    report = load_weights(again, tmp_path / "deformable.safetensors", min_matched=1.0)
    assert report.new == []
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "convnext_atto", "deform_stages": [2]}, "convnext_atto has no 3x3 convolutions in stage 2"),
        ({"name": "resnet18", "deform_stages": [5]}, "expected some of 1 to 4 for resnet18, got 5"),
        ({"name": "resnet18", "deform_stages": [4], "strides": [4, 8]}, "expected some of 1 to 2 for resnet18, got 4"),
        ({"name": "resnet18", "deform_stages": [2], "frozen_stages": 2}, "stage 2 is frozen, its offsets would stay"),
        ({"name": "resnet18", "deform_stages": [4, 3]}, r"expected them ascending, got \[4, 3\]"),
        ({"name": "resnet18", "deform_stages": [0]}, "deform_stages"),
        ({"name": "resnet18", "deform_groups": 4}, "deform_groups: would have no effect without deform_stages"),
        ({"name": "resnet18", "deform_modulated": True}, "deform_modulated: would have no effect without"),
        ({"name": "resnet18", "deform_stages": [4], "deform_groups": 0}, "deform_groups: expected at least 1"),
        (
            {"name": "resnet18", "deform_stages": [2], "deform_groups": 5},
            r"deform_groups: expected a divisor of the 64 channels of layer2.0.conv1 in resnet18, got 5",
        ),
    ],
)
def test_refusals(settings: dict, message: str):
    key = "" if message.startswith("deform_") else "deform_stages.*"
    with pytest.raises(ValueError, match=key + message):
        Backbone(**settings)

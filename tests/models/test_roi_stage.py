"""A backbone whose last stage is kept for RoIs: what images go through, what the stage computes, whose it is."""

import copy

import pytest
import torch

from visionlab.models.backbone import Backbone
from visionlab.models.weights import load_weights, read_backbone, save_backbone
from visionlab.ops import DeformConv2dPack

NARROW = {"channels": [8, 16, 24, 32]}


def narrow(**settings) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name="resnet18", options=NARROW, **settings)


@pytest.mark.parametrize(
    "name", ["resnet18", "regnetx_002", "convnext_atto", "efficientnet_lite0", "mobilenetv3_small_050"]
)
def test_level_and_stage_are_the_whole_model(name):
    """In EfficientNets and MobileNets several blocks share the last stride; all of them are the stage."""
    torch.manual_seed(0)
    whole, parts = Backbone(name=name).eval(), Backbone(name=name, roi_stage=True).eval()
    assert parts.strides == whole.strides[:-1]
    assert parts.channels == whole.channels[:-1]
    stage = parts.roi_stage
    assert (stage.in_channels, stage.channels, stage.stride) == (parts.channels[-1], whole.channels[-1], 2)
    assert parts.state_dict().keys() == whole.state_dict().keys()
    assert all(parameter.requires_grad for parameter in parts.parameters())
    parts.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        levels = parts(images)
        for level, expected in zip([*levels, stage(levels[-1])], whole(images), strict=True):
            torch.testing.assert_close(level, expected)


@pytest.mark.parametrize(("name", "multiple"), [("resnet18", 1), ("convnext_atto", 2), ("dla46_c", 2)])
def test_no_place_is_dropped(name, multiple):
    """Zeros stand where a stage would drop what is left over at the right and at the bottom."""
    torch.manual_seed(0)
    stage = Backbone(name=name, roi_stage=True).eval().roi_stage
    assert stage.multiple == multiple
    pooled = torch.randn(2, stage.in_channels, 7, 5)
    with torch.no_grad():
        found = stage(pooled)
        assert found.shape == (2, stage.channels, 4, 3)
        if multiple == 2:
            torch.testing.assert_close(found, stage(torch.nn.functional.pad(pooled, (0, 1, 0, 1))))


def test_images_do_not_go_through_the_stage():
    backbone = narrow(roi_stage=True)
    assert backbone.roi_stage.layers == (backbone.model.layer4,)
    backbone.model.layer4.register_forward_hook(lambda *_: pytest.fail("the stage was run"))
    assert len(backbone(torch.randn(1, 3, 64, 64))) == 3
    assert backbone.pool(torch.randn(1, 3, 64, 64)).shape == (1, 24)


def test_a_stage_in_the_middle():
    backbone = narrow(roi_stage=True, strides=[4, 8])
    assert backbone.roi_stage.layers == (backbone.model.layer3,)
    assert not any(name.startswith("layer4") for name in backbone.model.state_dict())


def test_what_is_said_of_stages_holds_for_it():
    frozen = narrow(roi_stage=True, frozen_stages=4).train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(module.training for module in frozen.model.layer4.modules())
    norms = narrow(roi_stage=True, norm="frozen").train()
    assert not norms.model.layer4[0].bn1.training
    assert not norms.model.layer4[0].bn1.weight.requires_grad
    groups = narrow(roi_stage=True, norm="group")
    assert isinstance(groups.model.layer4[0].bn1, torch.nn.GroupNorm)
    deformable = narrow(roi_stage=True, deform_stages=[4])
    assert isinstance(deformable.model.layer4[1].conv2, DeformConv2dPack)
    assert deformable.roi_stage(torch.randn(3, 24, 7, 7)).shape == (3, 32, 4, 4)


def test_files(tmp_path):
    whole, parts = narrow(), narrow(roi_stage=True)
    provenance = {"method": "simclr", "steps": 1, "images": 6}
    save_backbone(whole, tmp_path / "whole.safetensors", provenance=provenance)
    torch.nn.init.ones_(parts.model.layer4[0].conv1.weight)
    report = load_weights(parts, tmp_path / "whole.safetensors", min_matched=1.0)
    assert report.missing == report.unexpected == []
    assert torch.equal(parts.model.layer4[0].conv1.weight, whole.model.layer4[0].conv1.weight)
    save_backbone(parts, tmp_path / "parts.safetensors", provenance=provenance)
    again = read_backbone(tmp_path / "parts.safetensors")
    assert again.settings == parts.settings
    assert torch.equal(again.roi_stage.layers[0][0].conv1.weight, parts.model.layer4[0].conv1.weight)


def test_copies_have_a_stage_of_their_own():
    backbone = narrow(roi_stage=True)
    other = copy.deepcopy(backbone)
    assert other.roi_stage.layers == (other.model.layer4,)
    assert other.model.layer4 is not backbone.model.layer4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_tiny_patch16_224"}, r"roi_stage: expected a model with several levels, .* has strides \[16\]"),
        ({"name": "swin_tiny_patch4_window7_224"}, "roi_stage: swin_tiny_patch4_window7_224 has no modules that take"),
        ({"name": "dpn68"}, "roi_stage: dpn68 has no modules that take stride 16 to 32"),
        ({"name": "resnet18", "strides": [32]}, r"strides: expected some of \[2, 4, 8, 16\] for resnet18, got \[32\]"),
        ({"name": "resnet18", "output_stride": 16}, "roi_stage: expected no output_stride"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        Backbone(roi_stage=True, **settings)

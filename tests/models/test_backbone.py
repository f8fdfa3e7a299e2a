"""Backbones of all families keep one contract: levels, strides, sizes, gradients, freezing."""

from math import ceil

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from visionlab.models.backbone import Backbone, Normalization

# name, strides, channels
MODELS = [
    ("resnet18", [4, 8, 16, 32], [64, 128, 256, 512]),
    ("resnet50", [4, 8, 16, 32], [256, 512, 1024, 2048]),
    ("convnext_tiny", [4, 8, 16, 32], [96, 192, 384, 768]),
    ("vit_tiny_patch16_224", [16], [192]),
    ("mobilenetv3_large_100", [4, 8, 16, 32], [24, 40, 112, 960]),
    ("efficientnet_b0", [4, 8, 16, 32], [24, 40, 112, 320]),
    ("swin_tiny_patch4_window7_224", [4, 8, 16, 32], [96, 192, 384, 768]),
]
NAMES = [name for name, _, _ in MODELS]


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    torch.manual_seed(0)
    return {name: Backbone(name=name) for name in NAMES}


@pytest.mark.parametrize(("name", "strides", "channels"), MODELS)
def test_levels_of_any_size(backbones, name, strides, channels):
    backbone = backbones[name].eval()
    assert (backbone.strides, backbone.channels, backbone.num_features) == (strides, channels, channels[-1])
    for height, width in [(64, 96), (75, 101), (33, 32)]:
        with torch.no_grad():
            levels = backbone(torch.randn(2, 3, height, width))
        expected = [(2, c, ceil(height / s), ceil(width / s)) for c, s in zip(channels, strides, strict=True)]
        assert [tuple(level.shape) for level in levels] == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("use", ["levels", "pool"])
def test_every_trainable_parameter_gets_a_gradient(backbones, name, use):
    backbone = backbones[name].eval()
    images = torch.randn(1, 3, 64, 64)
    loss = sum(level.sum() for level in backbone(images)) if use == "levels" else backbone.pool(images).sum()
    parameters = dict(backbone.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    assert all(parameter.requires_grad for parameter in parameters.values())
    assert [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None] == []


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext_tiny", "mobilenetv3_large_100"])
def test_features_are_those_of_timm(backbones, name):
    ours = backbones[name].eval()
    theirs = timm.create_model(name, features_only=True, out_indices=ours._indices).eval()
    theirs.load_state_dict(
        {
            key.replace(".", "_", 1) if key not in theirs.state_dict() else key: value
            for key, value in ours.model.state_dict().items()
        }
    )
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for level, expected in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(level, expected)


def test_vit_features_are_those_of_timm():
    ours = Backbone(name="vit_tiny_patch16_224", image_size=64).eval()
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
    theirs.load_state_dict(ours.model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens = theirs.forward_features(images)[:, 1:]
        torch.testing.assert_close(ours(images)[0], tokens.mT.reshape(1, 192, 4, 4))
        torch.testing.assert_close(ours.pool(images), tokens.mean(1))


def test_vit_padding_reaches_no_further_than_the_last_patches():
    backbone = Backbone(name="vit_tiny_patch16_224").eval()
    images = torch.randn(1, 3, 40, 56)
    padded = torch.nn.functional.pad(images, (0, 8, 0, 8))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[0], backbone(padded)[0])


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "efficientnet_b0"])
def test_fewer_levels_drop_the_deeper_parts(backbones, name):
    full = backbones[name].eval()
    part = Backbone(name=name, strides=[8, 16]).eval()
    assert part.strides == [8, 16]
    assert len(part.model.state_dict()) < len(full.model.state_dict())
    part.model.load_state_dict(full.model.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for level, expected in zip(part(images), full(images)[1:3], strict=True):
            torch.testing.assert_close(level, expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext26ts", "regnetx_002"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_backbone_computes_the_strided_ones_features_and_those_between(name, output_stride):
    torch.manual_seed(0)
    options = {"channels": [8, 16, 24, 32]} if name.startswith("resnet") else None
    plain = Backbone(name=name, norm="frozen", options=options).double()
    dilated = Backbone(name=name, norm="frozen", options=options, output_stride=output_stride).double()
    with torch.no_grad():
        for value in plain.model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(-1, 1).mul_(0.1 if value.dim() > 1 else 1).abs_()
    dilated.model.load_state_dict(plain.model.state_dict())
    strides = [4, 8, 16][: 2 + output_stride // 16]
    assert (dilated.strides, dilated.channels[-1]) == (strides, plain.channels[-1])
    images = torch.randn(1, 3, 70, 91, dtype=torch.float64)
    with torch.no_grad():
        expected, found = plain(images)[-1], dilated(images)[-1]
    step = 32 // output_stride
    assert found.shape[2:] == (-(-70 // output_stride), -(-91 // output_stride))
    torch.testing.assert_close(found[:, :, ::step, ::step], expected, rtol=1e-10, atol=1e-10 * expected.abs().max())
    assert expected.std() > 0


def test_the_levels_of_dilated_backbones():
    for name in ("convnext_atto", "efficientnet_b0"):
        plain, dilated = Backbone(name=name), Backbone(name=name, output_stride=16)
        assert dilated.strides == [4, 8, 16]
        assert dilated.num_features == plain.num_features
        dilated.model.load_state_dict(plain.model.state_dict())
        assert dilated.eval()(torch.zeros(1, 3, 50, 40))[-1].shape == (1, plain.num_features, 4, 3)
        assert Backbone(**dilated.settings).settings == dilated.settings


def test_normalize_agrees_with_the_formula_and_zeroes_padding():
    backbone = Backbone(name="resnet18")
    pixels = torch.randint(0, 256, (2, 3, 8, 10), dtype=torch.uint8)
    images = backbone.normalize(pixels, [(8, 10), (5, 7)])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for image, (height, width) in enumerate([(8, 10), (5, 7)]):
        for channel in range(3):
            for y in range(8):
                for x in range(10):
                    value = (pixels[image, channel, y, x].item() / 255 - mean[channel]) / std[channel]
                    expected = value if y < height and x < width else 0.0
                    assert images[image, channel, y, x].item() == pytest.approx(expected, abs=1e-6)


def test_normalization_is_the_models_own_and_can_be_replaced():
    backbone = Backbone(name="vit_tiny_patch16_224")
    assert backbone.normalization == Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    backbone.normalization = Normalization((0, 0, 0), (1, 1, 1))
    assert backbone.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).unique().tolist() == [1.0]
    assert not any("mean" in key or "std" in key for key in backbone.state_dict())


@pytest.mark.parametrize(
    ("mean", "std"), [((0, 0), (1, 1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, 1, float("nan")))]
)
def test_normalization_refuses(mean, std):
    with pytest.raises(ValueError, match="normalization"):
        Normalization(mean, std)


def test_normalize_refuses_floats(backbones):
    with pytest.raises(ValueError, match="uint8"):
        backbones["resnet18"].normalize(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "stages", "frozen", "free"),
    [
        ("resnet18", 1, ("conv1", "bn1", "layer1"), ("layer2", "layer3", "layer4")),
        ("resnet18", 4, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), ()),
        ("convnext_tiny", 2, ("stem", "stages.0", "stages.1"), ("stages.2", "stages.3")),
        ("vit_tiny_patch16_224", 2, ("cls_token", "pos_embed", "patch_embed", "blocks.0.", "blocks.1."), ("blocks.2",)),
        ("efficientnet_b0", 1, ("conv_stem", "bn1", "blocks.0"), ("blocks.1",)),
    ],
)
def test_frozen_stages(name, stages, frozen, free):
    backbone = Backbone(name=name, frozen_stages=stages)
    trains = {key: parameter.requires_grad for key, parameter in backbone.model.named_parameters()}
    assert not any(trains[key] for key in trains if key.startswith(frozen))
    assert all(trains[key] for key in trains if not key.startswith(frozen))
    backbone.eval().train()
    for part in frozen:
        modules = [module for key, module in backbone.model.named_modules() if f"{key}.".startswith(part) and key]
        assert not any(module.training for module in modules)
    for part in free:
        assert backbone.model.get_submodule(part).training


@pytest.mark.parametrize("settings", [{"frozen_stages": 2}, {"norm": "frozen"}])
def test_what_is_frozen_does_not_move(settings):
    backbone = Backbone(name="resnet18", options={"zero_init_last": False}, **settings).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    sgd = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    backbone.pool(torch.randn(2, 3, 64, 64)).square().sum().backward()
    sgd.step()
    moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    if "norm" in settings:
        assert moved == {key for key in before if "conv" in key or "downsample.0" in key}
    else:
        assert moved == {key for key in before if "layer3" in key or "layer4" in key}


def test_frozen_stages_zero_trains_everything():
    assert all(parameter.requires_grad for parameter in Backbone(name="resnet18").parameters())
    assert all(module.training for module in Backbone(name="resnet18").modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet51"}, r"no timm model is called 'resnet51'; did you mean .*resnet50"),
        ({"name": "hf-hub:timm/resnet18"}, "no timm model"),
        ({"name": "crossvit_tiny_240"}, "expected a model with feature maps"),
        ({"name": "resnet18", "image_size": 64}, "image_size: would have no effect"),
        ({"name": "resnet18", "options": {"pretrained": True}}, "'pretrained' of resnet18 is not free to set"),
        ({"name": "resnet18", "options": {"no_such": 1}}, "no_such"),
        ({"name": "vit_tiny_patch16_224", "options": {"no_such": 1}}, "no_such"),
        ({"name": "efficientnet_b0", "options": {"no_such": 1}}, "no_such"),
        ({"name": "resnet18", "strides": [4, 64]}, r"expected some of \[2, 4, 8, 16, 32\]"),
        ({"name": "resnet18", "strides": [8, 4]}, "ascending"),
        ({"name": "resnet18", "output_stride": 32}, "output_stride: expected 8 or 16, got 32"),
        ({"name": "resnet18", "output_stride": 16, "strides": [4, 8]}, r"output_stride: expected the last of strides"),
        ({"name": "resnet18", "options": {"output_stride": 16}}, "'output_stride' of resnet18 is not free to set"),
        ({"name": "vit_tiny_patch16_224", "output_stride": 16}, "output_stride: timm cannot dilate vit_tiny_patch16"),
        ({"name": "vgg11", "output_stride": 16}, "output_stride: timm cannot dilate vgg11 to 16"),
        ({"name": "densenet121", "output_stride": 8}, "output_stride: timm cannot dilate densenet121 to 8"),
        ({"name": "resnet18", "strides": []}, "strides: expected"),
        ({"name": "resnet18", "frozen_stages": 5}, "expected 0 to 4 for resnet18, got 5"),
        ({"name": "resnet18", "frozen_stages": -1}, "frozen_stages: expected at least 0, got -1"),
        ({"name": "vit_tiny_patch16_224", "image_size": -4}, "image_size: expected at least 1, got -4"),
        ({"name": "convnext_tiny", "norm": "sync"}, "norm: sync would have no effect"),
        ({"name": "convnext_tiny", "norm": "group"}, "norm: group would have no effect"),
        ({"name": "vit_tiny_patch16_224", "norm": "frozen"}, "norm: frozen would have no effect"),
    ],
)
def test_refusals_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        Backbone(**settings)
    assert "\n" not in str(caught.value)


def test_model_of_fixed_size_refuses_another():
    backbone = Backbone(name="mixer_s32_224").eval()
    assert backbone.fixed_size == (224, 224)
    with pytest.raises(ValueError, match=r"images: expected \(224, 224\) pixels for \S+, got \(64, 64\)"):
        backbone(torch.zeros(1, 3, 64, 64))


def test_image_size_sets_the_grid_of_a_vit_which_still_takes_any_size():
    backbone = Backbone(name="vit_tiny_patch16_224", image_size=64).eval()
    assert backbone.model.pos_embed.shape == (1, 17, 192)
    assert backbone(torch.zeros(1, 3, 96, 64))[0].shape == (1, 192, 6, 4)


def test_settings_build_the_same_backbone():
    settings = {
        "name": "resnet18",
        "strides": [4, 8],
        "frozen_stages": 1,
        "norm": "group",
        "options": {"drop_path_rate": 0.1},
    }
    first = Backbone(**settings)
    again = Backbone(**first.settings)
    assert {key: value.shape for key, value in first.state_dict().items()} == {
        key: value.shape for key, value in again.state_dict().items()
    }
    assert again.settings == first.settings


def test_construction_leaves_batch_statistics_alone():
    state = Backbone(name="resnet18").state_dict()
    assert torch.equal(state["model.bn1.running_mean"], torch.zeros(64))
    assert state["model.bn1.num_batches_tracked"] == 0


class _Narrow(TorchDispatchMode):
    """Lists all convolutions in bfloat16, forward and backward, and those whose stride is wider than their map."""

    def __init__(self):
        super().__init__()
        self.all, self.found = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        forward = function is torch.ops.aten.convolution.default
        if forward or function is torch.ops.aten.convolution_backward.default:
            image, stride = (args[0], args[3]) if forward else (args[1], args[4])
            if image.dtype == torch.bfloat16:
                self.all.append((function, tuple(image.shape), stride))
                self.found += self.all[-1:] if image.shape[-1] < stride[-1] else []
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "mobilenetv3_large_100"])
@pytest.mark.parametrize("width", [3, 9, 16, 31, 32])
def test_autocast_narrows_no_convolution_whose_stride_is_wider_than_its_map(backbones, name, width):
    """oneDNN computes these from memory that nobody wrote, on processors with AMX, so that NaNs come and go."""
    backbone = backbones[name].eval()
    with _Narrow() as narrow:
        with torch.autocast("cpu", torch.bfloat16):
            features = backbone.pool(torch.randn(2, 3, 48, width))
        features.float().sum().backward()
    backbone.zero_grad()
    assert narrow.found == []
    assert narrow.all or width < 32

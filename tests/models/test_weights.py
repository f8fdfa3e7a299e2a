"""Backbone files: what timm reads, what comes from elsewhere, what is refused, and that all is accounted for."""

import argparse
import json
import os
import pickle

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import visionlab
from visionlab.models import weights
from visionlab.models.backbone import Backbone, Normalization
from visionlab.models.tensor_file import write_tensors
from visionlab.models.weights import load_weights, read_backbone, save_backbone

PROVENANCE = {"method": "simclr", "steps": 1000, "images": 600}
SAVED = {
    "resnet18": [],
    "resnet50": [],
    "convnext_atto": ["head.norm.weight", "head.norm.bias"],
    "vit_tiny_patch16_224": [],
}


def _randomized(**settings) -> Backbone:
    backbone = Backbone(**settings)
    with torch.no_grad():
        for value in backbone.model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 1)
    return backbone


def _equal(first: Backbone, second: Backbone) -> bool:
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return _randomized(name="resnet18")


@pytest.fixture
def state(resnet) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in resnet.model.state_dict().items()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "resnet50" else ()) for n in SAVED])
def test_saved_file_loads_into_plain_timm_and_back_bit_for_bit(tmp_path, name):
    backbone = _randomized(name=name)
    save_backbone(backbone, tmp_path / "backbone.safetensors", provenance=PROVENANCE)

    plain = timm.create_model(name, num_classes=0)
    tensors = load_file(tmp_path / "backbone.safetensors")
    result = plain.load_state_dict(tensors, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (SAVED[name], [])
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in backbone.model.state_dict().items())

    with safe_open(tmp_path / "backbone.safetensors", framework="pt") as file:
        description = file.metadata()
    assert json.loads(description["absent"]) == SAVED[name]
    wanted = {"name": name, "format": "1", "method": "simclr", "steps": "1000", "images": "600", "norm": "train"}
    assert {key: description[key] for key in wanted} == wanted
    assert description["visionlab"] == visionlab.__version__
    assert Normalization(**json.loads(description["normalization"])) == backbone.normalization

    other = Backbone(name=name)
    report = load_weights(other, tmp_path / "backbone.safetensors")
    assert _equal(backbone, other)
    assert report.fraction == 1.0
    assert report.missing == report.mismatched == report.unexpected == report.expected == []
    assert "\n" not in str(report)
    assert f"{report.total_elements:,} of {report.total_elements:,} elements (100.0%)" in str(report)


def test_saving_replaces_in_one_step(tmp_path, resnet, monkeypatch):
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_backbone(resnet, path, provenance=PROVENANCE)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["backbone.safetensors"]


@pytest.mark.parametrize("key", ["norm", "format"])
def test_provenance_cannot_contradict_the_file(tmp_path, resnet, key):
    with pytest.raises(ValueError, match=f"'{key}'"):
        save_backbone(resnet, tmp_path / "b.safetensors", provenance={key: "x"})


def test_normalization_travels_with_the_weights(tmp_path):
    backbone = Backbone(name="resnet18")
    backbone.normalization = Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    save_backbone(backbone, tmp_path / "b.safetensors", provenance=PROVENANCE)
    other = Backbone(name="resnet18")
    report = load_weights(other, tmp_path / "b.safetensors")
    assert other.normalization == backbone.normalization
    assert "input normalization (0.5, 0.4, 0.3), (0.2, 0.2, 0.2) taken over" in str(report)


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda s: s, ""),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "module."),
        (lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}, "epoch": 3}, "backbone."),
        (lambda s: {"model": {"module": {f"encoder.{k}": v for k, v in s.items()}}}, "encoder."),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_peoples_files(tmp_path, resnet, state, wrap, prefix, suffix):
    content = wrap({**state, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)})
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(content, path)
    elif all(isinstance(value, torch.Tensor) for value in content.values()):
        save_file(content, path, {"format": "pt"})
    else:
        pytest.skip("safetensors files are flat")
    other = Backbone(name="resnet18")
    report = load_weights(other, path)
    assert _equal(resnet, other)
    assert (report.prefix, report.expected, report.unexpected) == (prefix, ["fc.bias", "fc.weight"], [])
    assert "kept, the source names none" in str(report)


def test_moco_checkpoint(tmp_path, resnet, state):
    """Two encoders, a queue and the arguments of the script, as MoCo's code leaves them: the query encoder is taken."""
    content = {f"module.encoder_q.{key}": value for key, value in state.items()}
    content |= {f"module.encoder_k.{key}": torch.zeros_like(value) for key, value in state.items()}
    content |= {"module.encoder_q.fc.0.weight": torch.zeros(8, 8), "module.queue": torch.zeros(128, 16)}
    torch.save({"state_dict": content, "args": argparse.Namespace(lr=0.03)}, tmp_path / "moco.pth.tar")
    other = Backbone(name="resnet18")
    report = load_weights(other, tmp_path / "moco.pth.tar")
    assert _equal(resnet, other)
    assert report.expected == ["fc.0.weight"]
    assert len(report.unexpected) == len(state) + 1
    assert "names taken from 'state_dict: module.encoder_q.'" in str(report)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_names(tmp_path, name):
    torchvision = pytest.importorskip("torchvision")
    model = getattr(torchvision.models, name)().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = Backbone(name=name).eval()
    report = load_weights(backbone, tmp_path / "weights.pth")
    assert (report.fraction, report.unexpected) == (1.0, [])
    images = torch.randn(1, 3, 64, 64)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(backbone.pool(images), model(images))


def test_files_without_batch_counters_match_in_full(tmp_path, state):
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    assert load_weights(Backbone(name="resnet18"), tmp_path / "old.pth").fraction == 1.0


def test_too_little_is_refused_and_changes_nothing(tmp_path, state):
    torch.save({key: value for key, value in state.items() if "layer4" not in key}, tmp_path / "part.pth")
    backbone = Backbone(name="resnet18")
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    counts = r"matched 75 of 100 tensors \(75\.0%\) and 2,787,264 of 11,186,112 elements \(24\.9%\)"
    with pytest.raises(ValueError, match=counts) as caught:
        load_weights(backbone, tmp_path / "part.pth")
    assert "missing 25 (layer4.0.conv1.weight, " in str(caught.value)
    assert "expected at least 95%" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.model.state_dict().items())

    report = load_weights(backbone, tmp_path / "part.pth", min_matched=0.2)
    assert len(report.missing) == 25
    assert torch.equal(backbone.model.state_dict()["layer3.1.conv2.weight"], state["layer3.1.conv2.weight"])


def test_another_shape_is_named(tmp_path, state):
    state["conv1.weight"] = state["conv1.weight"][:, :1].clone()
    torch.save(state, tmp_path / "gray.pth")
    report = load_weights(Backbone(name="resnet18"), tmp_path / "gray.pth")
    assert report.mismatched == ["conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)"]
    assert "of another shape 1 (conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7))" in str(report)


def test_weights_of_another_kind_are_refused(tmp_path):
    torch.save(timm.create_model("mobilenetv3_small_050", num_classes=0).state_dict(), tmp_path / "mobile.pth")
    with pytest.raises(ValueError, match="matched 0 of 100 tensors"):
        load_weights(Backbone(name="resnet18"), tmp_path / "mobile.pth")


def test_another_architecture_is_refused_by_name(tmp_path, resnet):
    save_backbone(resnet, tmp_path / "b.safetensors", provenance=PROVENANCE)
    with pytest.raises(ValueError, match=r"b\.safetensors: holds weights of resnet18, expected those of resnet34"):
        load_weights(Backbone(name="resnet34"), tmp_path / "b.safetensors")
    assert load_weights(Backbone(name="resnet18.a1_in1k"), tmp_path / "b.safetensors").fraction == 1.0


def test_a_newer_format_is_refused(tmp_path, state, monkeypatch):
    monkeypatch.setattr("visionlab.models.tensor_file.FORMAT", 2)
    write_tensors(state, tmp_path / "b.safetensors", weights.KIND, {"name": "resnet18"})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="expected format 1 or older, got 2"):
        load_weights(Backbone(name="resnet18"), tmp_path / "b.safetensors")


def test_batch_norm_into_group_norm_takes_the_affine_part(tmp_path, resnet):
    save_backbone(resnet, tmp_path / "b.safetensors", provenance=PROVENANCE)
    group = Backbone(name="resnet18", norm="group")
    report = load_weights(group, tmp_path / "b.safetensors")
    assert torch.equal(group.model.bn1.weight, resnet.model.bn1.weight)
    assert len(report.expected) == 60
    assert report.unexpected == []


def test_group_norm_into_batch_norm_is_refused(tmp_path):
    save_backbone(Backbone(name="resnet18", norm="group"), tmp_path / "b.safetensors", provenance=PROVENANCE)
    with pytest.raises(ValueError, match="was trained with norm: group, expected norm: frozen; set norm: group"):
        load_weights(Backbone(name="resnet18", norm="frozen"), tmp_path / "b.safetensors")
    assert load_weights(Backbone(name="resnet18", norm="group"), tmp_path / "b.safetensors").fraction == 1.0


@pytest.mark.parametrize("settings", [{"norm": "sync"}, {"norm": "frozen"}, {"frozen_stages": 2}, {"strides": [8, 16]}])
def test_loading_serves_every_setting(tmp_path, resnet, settings):
    save_backbone(resnet, tmp_path / "b.safetensors", provenance=PROVENANCE)
    backbone = Backbone(name="resnet18", **settings)
    report = load_weights(backbone, tmp_path / "b.safetensors")
    assert (report.fraction, report.unexpected) == (1.0, [])
    assert all(torch.equal(value, resnet.model.state_dict()[key]) for key, value in backbone.model.state_dict().items())
    assert any("layer4" in name for name in report.expected) == ("strides" in settings)


def test_position_embedding_is_interpolated(tmp_path):
    backbone = Backbone(name="vit_tiny_patch16_224")
    with torch.no_grad():
        backbone.model.pos_embed.copy_(torch.linspace(0, 1, 192).expand(1, 197, 192))
    save_backbone(backbone, tmp_path / "b.safetensors", provenance=PROVENANCE)
    small = Backbone(name="vit_tiny_patch16_224", image_size=64)
    report = load_weights(small, tmp_path / "b.safetensors")
    assert report.resized == ["pos_embed"]
    assert "interpolated 1 (pos_embed)" in str(report)
    torch.testing.assert_close(small.model.pos_embed.data, torch.linspace(0, 1, 192).expand(1, 17, 192))


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"model": _Bomb()}, path), "expected tensors only, it holds posix.mkdir"),
        (lambda path: path.write_bytes(pickle.dumps(_Bomb(), protocol=2)), "expected"),
        (lambda path: path.write_bytes(b"not weights"), "cannot be read as one"),
        (lambda path: path.write_bytes(b""), "cannot be read as one"),
        (lambda path: path.mkdir(), "cannot be read as one"),
        (lambda path: torch.save(torch.zeros(3), path), "expected a dictionary of tensors, got Tensor"),
        (lambda path: None, "cannot be read as one"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_unreadable_files_are_refused_in_one_line(tmp_path, monkeypatch, resnet, write, message, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights.{suffix}"
    write(path)
    with pytest.raises(ValueError, match=message if suffix == "pth" else "expected a safetensors file") as caught:
        load_weights(resnet, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bomb").exists()


def test_timm_weights(monkeypatch, resnet):
    created = []

    def create_model(name, *, pretrained, num_classes):
        created.append((name, pretrained, num_classes))
        return resnet.model

    backbone = Backbone(name="resnet18.a1_in1k")
    monkeypatch.setattr(timm, "create_model", create_model)
    report = load_weights(backbone, "timm")
    assert created == [("resnet18.a1_in1k", True, 0)]
    assert _equal(resnet, backbone)
    assert str(report).startswith("timm: matched 100 of 100")


def test_timm_without_weights_is_refused():
    with pytest.raises(ValueError, match="timm gives no weights for ghostnet_050") as caught:
        load_weights(Backbone(name="ghostnet_050"), "timm")
    assert "\n" not in str(caught.value)


def test_min_matched_is_a_share(resnet):
    with pytest.raises(ValueError, match=r"min_matched: expected a share in \[0, 1\], got 95"):
        load_weights(resnet, "timm", min_matched=95)


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    plain, saved = tmp_path / "plain", tmp_path / "saved.safetensors"
    plain.touch()
    write_tensors({"weight": torch.ones(2)}, saved, "visionlab backbone", {})
    assert saved.stat().st_mode == plain.stat().st_mode


def test_a_file_says_how_to_build_its_backbone(tmp_path):
    torch.manual_seed(3)
    settings = {"name": "resnet18", "strides": [8, 16], "norm": "group", "options": {"channels": [8, 16, 32, 64]}}
    backbone = Backbone(**settings).eval()
    backbone.normalization = Normalization((0.1, 0.2, 0.3), (1, 2, 3))
    save_backbone(backbone, tmp_path / "backbone.safetensors", provenance={"method": "none"})
    for path in (tmp_path, tmp_path / "backbone.safetensors"):
        again = read_backbone(path)
        assert again.settings == backbone.settings
        assert again.normalization == backbone.normalization
        images = torch.randn(1, 3, 32, 32)
        assert all(torch.equal(*maps) for maps in zip(again(images), backbone(images), strict=True))
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected a file written by save_backbone"):
        read_backbone(tmp_path / "other.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_that_bring_their_normalization_keep_the_precision_of_the_model(tmp_path, dtype):
    source = Backbone(name="resnet18", options={"channels": [8, 16, 32, 64]})
    source.normalization = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    save_backbone(source, tmp_path / "a.safetensors", provenance={})
    backbone = Backbone(name="resnet18", options={"channels": [8, 16, 32, 64]}).to(dtype).eval()
    load_weights(backbone, tmp_path / "a.safetensors")
    images = backbone.normalize(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8))
    assert images.dtype == dtype
    expected = (200 / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(images[0, :, 0, 0].float(), expected, rtol=2e-2, atol=2e-2)
    assert all(level.dtype == dtype for level in backbone(images))

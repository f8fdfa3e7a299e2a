"""A detector that starts from another: every row lands where its class is, and what does not fit is told or refused."""

import hashlib
import json

import pytest
import torch
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn

from visionlab.models import detector_transfer
from visionlab.models.backbone import Backbone, Normalization
from visionlab.models.detector import build_detector, save_detector
from visionlab.models.detector_transfer import load_detector_weights
from visionlab.models.norm import batch_norms
from visionlab.models.torchvision_weights import COCO_CLASSES
from visionlab.models.weights import load_weights, save_backbone

SMALL = {
    "backbone": {"name": "resnet18", "options": {"channels": [8, 16, 32, 64]}},
    "neck": {"channels": 8},
    "head": {"fc_channels": 16},
}
ANIMALS = ["ant", "bee", "cat"]


def small(classes, **parts):
    return build_detector(classes, **{**SMALL, **parts})


@pytest.fixture
def trained(tmp_path):
    detector = small(ANIMALS)
    with torch.no_grad():
        for value in detector.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 1)
    detector.backbone.normalization = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_detector(detector, tmp_path / "detector.safetensors")
    return detector


def test_the_same_classes_take_everything(trained, tmp_path):
    other = small(ANIMALS)
    report = load_detector_weights(other, tmp_path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in trained.state_dict().items())
    assert report.fraction == 1
    assert report.missing == report.mismatched == report.unexpected == report.new == []
    assert other.backbone.normalization == trained.backbone.normalization
    assert "\n" not in str(report)


C4 = {
    "backbone": {**SMALL["backbone"], "roi_stage": True},
    "neck": {"name": "single_level"},
    "head": {"name": "res5"},
}
DC5 = {**C4, "backbone": {**SMALL["backbone"], "output_stride": 16}, "head": {"fc_channels": 16}}


@pytest.mark.parametrize("parts", [C4, DC5, {"backbone": {**SMALL["backbone"], "deform_stages": [3, 4]}}])
def test_detectors_with_other_parts(parts, trained, tmp_path):
    """They take from their like, rows of classes by name, and not from what lacks a part of theirs."""
    first, other = small(["bee", "dog"], **parts), small(["eel", "bee"], **parts)
    save_detector(first, tmp_path / "like.safetensors")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    report = load_detector_weights(other, tmp_path / "like.safetensors")
    assert report.fraction == 1
    state, theirs = other.state_dict(), first.state_dict()
    assert all(torch.equal(state[name], value) for name, value in theirs.items() if not name.startswith("head."))
    assert torch.equal(state["head.classes.weight"][1:], theirs["head.classes.weight"][[0, 2]])
    assert torch.equal(state["head.classes.weight"][0], before["head.classes.weight"][0])
    if "neck" in parts:
        with pytest.raises(ValueError, match="expected at least 95% matched of each part, got "):
            load_detector_weights(other, tmp_path / "detector.safetensors")


@pytest.mark.parametrize(
    "classes", [["cat", "dog", "ant", "eel", "fly"], ["Cat "], ["cat", "bee", "ant"]], ids=["more", "one", "permuted"]
)
def test_rows_follow_the_names_of_classes(trained, classes, tmp_path):
    other = small(classes)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    report = load_detector_weights(other, tmp_path / "detector.safetensors")
    now, theirs = other.state_dict(), trained.state_dict()
    for label, name in enumerate([*classes, "background"]):
        key = name.strip().lower()
        known = key in ANIMALS or name == "background"
        old = ANIMALS.index(key) if key in ANIMALS else 3
        for layer in ("classes.weight", "classes.bias"):
            expected = theirs[f"head.{layer}"][old] if known else before[f"head.{layer}"][label]
            assert torch.equal(now[f"head.{layer}"][label], expected), (layer, name)
        if name == "background":
            continue
        for layer in ("offsets.weight", "offsets.bias"):
            source = theirs[f"head.{layer}"][4 * old : 4 * old + 4]
            expected = source if known else before[f"head.{layer}"][4 * label : 4 * label + 4]
            assert torch.equal(now[f"head.{layer}"][4 * label : 4 * label + 4], expected), (layer, name)
    assert report.fraction == 1
    count = sum(name.strip().lower() in ANIMALS for name in classes)
    assert f"classes taken over by name {count} (" in str(report)


def test_without_a_common_class_the_last_layers_start_anew(trained, tmp_path):
    other = small(["dog", "eel"])
    before = {name: value.clone() for name, value in other.state_dict().items()}
    report = load_detector_weights(other, tmp_path)
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("head.classes", "head.offsets")) for name in changed)
    assert "head.fc1.weight" in changed
    assert set(report.new) == {"head.classes.weight", "head.classes.bias", "head.offsets.weight", "head.offsets.bias"}
    assert "taken over by name 0, new 2 (dog, eel)" in str(report)


def test_settings_that_differ_are_told(trained, tmp_path):
    report = load_detector_weights(small(ANIMALS, rpn={"anchor_ratios": (0.4, 1.0, 2.0)}), tmp_path)
    assert "trained with other settings: rpn.anchor_ratios [0.5, 1.0, 2.0], here [0.4, 1.0, 2.0]" in str(report)


@pytest.mark.parametrize("classes", [ANIMALS, ["dog", "bee"], ["ant", "bee", "cat", "eel"]], ids=len)
@pytest.mark.parametrize("agnostic", [True, False])
def test_boxes_of_each_class_are_not_made_of_shared_ones_nor_the_reverse(agnostic, classes, tmp_path):
    heads = [{**SMALL["head"], "class_agnostic": shared} for shared in (agnostic, not agnostic)]
    save_detector(small(ANIMALS[:2], head=heads[0]), tmp_path / "detector.safetensors")
    with pytest.raises(ValueError, match=rf"head.class_agnostic {agnostic}, here {not agnostic}; expected .* of head"):
        load_detector_weights(small(classes, head=heads[1]), tmp_path)


def test_boxes_that_classes_share_are_taken_over_whatever_the_classes(tmp_path):
    head = {**SMALL["head"], "class_agnostic": True}
    trained, other = small(ANIMALS, head=head), small(["eel", "bee"], head=head)
    save_detector(trained, tmp_path / "detector.safetensors")
    assert load_detector_weights(other, tmp_path).fraction == 1
    assert torch.equal(other.head.offsets.weight, trained.head.offsets.weight)
    assert torch.equal(other.head.classes.weight[1:], trained.head.classes.weight[[1, 3]])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"head": {"fc_channels": 8}}, "expected at least 95% matched of each part, got 25.0% of head"),
        ({"backbone": {**SMALL["backbone"], "norm": "group"}}, "was trained with norm: train, expected norm: group"),
        ({"backbone": {"name": "convnext_atto"}}, "expected at least 95% matched"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(trained, parts, message, tmp_path):
    other = small(ANIMALS, **parts)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_detector_weights(other, tmp_path)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_file_that_holds_no_detector_is_refused(tmp_path):
    save_backbone(Backbone(**SMALL["backbone"]), tmp_path / "backbone.safetensors", provenance={})
    torch.save({"state_dict": {"fc.weight": torch.ones(2)}}, tmp_path / "other.pth")
    for name, got in (("backbone.safetensors", "a backbone; weights: "), ("other.pth", "no weights of one")):
        with pytest.raises(ValueError, match=f"{name}: expected a detector, .*, got {got}"):
            load_detector_weights(small(ANIMALS), tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        load_detector_weights(small(ANIMALS), tmp_path / "none.safetensors")


def test_a_detector_given_as_weights_says_what_stays_random(trained, tmp_path):
    report = load_weights(Backbone(**SMALL["backbone"]), tmp_path / "detector.safetensors")
    assert "holds a whole detector and only its backbone was taken" in str(report)
    assert f"detector: {tmp_path / 'detector.safetensors'} takes them too" in str(report)


# --- torchvision's file ----------------------------------------------------------------------------------------------


def test_names_are_those_of_torchvision():
    named = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    assert [name or "N/A" for name in COCO_CLASSES] == named


def test_names_are_those_of_coco_by_id(test_data):
    categories = json.loads((test_data / "coco_mini" / "annotations" / "instances_val2017.json").read_text())[
        "categories"
    ]
    assert {c["id"]: c["name"] for c in categories} == {i: name for i, name in enumerate(COCO_CLASSES, 1) if name}


@pytest.mark.parametrize("is_v1", [True, False])
def test_torchvisions_coco_file_gives_its_rows_to_classes_of_the_same_name(is_v1, tmp_path, monkeypatch):
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with torch.no_grad():
        theirs.roi_heads.box_predictor.cls_score.bias.copy_(torch.arange(91.0))
        theirs.roi_heads.box_predictor.bbox_pred.bias.copy_(torch.arange(364.0))
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 1}, path)
    if is_v1:
        monkeypatch.setattr(detector_transfer, "COCO_V1", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    ours = build_detector(["ship", "dog", "person"], backbone={"norm": "frozen"}, rpn={"anchor_steps": "image"})
    report = load_detector_weights(ours, path)
    assert report.fraction == 1
    state = ours.state_dict()
    assert state["head.classes.bias"][1:].tolist() == [18, 1, 0]  # dog, person, and background
    assert state["head.offsets.bias"][4:].tolist() == [*range(72, 76), *range(4, 8)]
    assert torch.equal(state["neck.output.0.weight"], theirs.state_dict()["backbone.fpn.layer_blocks.0.0.weight"])
    assert "trained with other settings" not in str(report)
    assert {layer.eps for layer in batch_norms(ours.backbone)} == {0.0 if is_v1 else 1e-5}
    assert ours.settings["norm_eps"] == (0.0 if is_v1 else None)

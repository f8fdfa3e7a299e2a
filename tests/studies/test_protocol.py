"""What a comparison holds equal: which encoder the references get, what may differ, what a detector takes over."""

import json
from typing import Any

import pytest
import torch
from tiny_runs import DETECT, PRETRAIN, write_config

from visionlab.config import build
from visionlab.config.load import load
from visionlab.config.shipped import shipped, shipped_names
from visionlab.models.backbone import Backbone
from visionlab.models.weights import load_weights, save_backbone
from visionlab.studies.protocol import base_run, check_shared, detector_run, load_run, norm_of

CHANNELS = {"channels": [8, 16, 32, 64]}
COMPARED = [name for name in shipped_names() if name.startswith(("compare/cifar/", "compare/imagenette/"))]


@pytest.fixture
def method(tmp_path):
    """Return a pretraining run whose backbone has these settings besides those of the tiny runs."""

    def method(**backbone: Any):
        return load(write_config(tmp_path, PRETRAIN, backbone=PRETRAIN["backbone"] | backbone))

    return method


@pytest.fixture
def detect(tmp_path):
    """Return the path of a detector's config whose backbone has these settings besides those of the tiny runs."""

    def detect(backbone: dict[str, Any], **sections: Any):
        return write_config(tmp_path, DETECT, backbone=PRETRAIN["backbone"] | backbone, **sections)

    return detect


def test_references_have_the_encoder_of_most_methods(method):
    group, train, layer = method(norm="group"), method(), method(options=CHANNELS | {"norm_layer": "groupnorm1"})
    assert base_run({"cpc": group, "rotation": train, "simclr": train}) is train
    assert base_run({"cpc": layer, "rotation": train, "dim": group, "simclr": train}) is train
    assert base_run({"cpc": group, "rotation": train}) is group
    assert base_run({"rotation": train, "cpc": group}) is train
    first, second = train.model_copy(update={"seed": 1}), train.model_copy(update={"seed": 2})
    assert base_run({"cpc": group, "rotation": first, "simclr": second}) is first


def test_norms_alone_may_differ(method):
    runs = {"a": method(), "b": method(norm="group"), "c": method(options=CHANNELS | {"norm_layer": "groupnorm1"})}
    check_shared(runs)
    assert [norm_of(run) for run in runs.values()] == ["train", "group", "groupnorm1"]
    assert norm_of(method(norm="sync", options={"norm_layer": "batchnorm2d"})) == "batchnorm2d sync"
    check_shared({"plain": method(options=None), "layer": method(options={"norm_layer": "groupnorm1"})})
    with pytest.raises(ValueError, match=r"^backbone: expected the same for all methods, got .* in a, .* in d$"):
        check_shared(runs | {"d": method(options=CHANNELS | {"stem_type": "deep"})})
    with pytest.raises(ValueError, match=r"^backbone: expected the same for all methods"):
        check_shared(runs | {"d": method(strides=[4, 8])})


def backbone_of(run) -> dict[str, Any]:
    return run.backbone.arguments()


def test_a_detector_is_built_on_the_layers_of_the_encoder(method, detect):
    path = detect({"name": "resnet34", "frozen_stages": 1})
    found = backbone_of(detector_run(path, backbone_of(method(norm="group"))))
    assert (found["name"], found["options"], found["norm"]) == ("resnet18", CHANNELS, "group")
    assert found["frozen_stages"] == 1
    options = CHANNELS | {"norm_layer": "groupnorm1"}
    found = backbone_of(detector_run(path, backbone_of(method(options=options))))
    assert (found["options"], found["norm"]) == (options, "train")
    changed = detector_run(path, backbone_of(method()), ["seed=3", "weights=x.safetensors"])
    assert (changed.seed, changed.weights) == (3, "x.safetensors")


def test_a_detector_that_is_not_measured_by_cocos_metrics_is_refused(method, detect):
    path = detect({}, evaluate={"metrics": "voc12"})
    with pytest.raises(ValueError, match=r"evaluate\.metrics: expected coco, which studies compare by, got voc12"):
        detector_run(path, backbone_of(method()))


def test_batch_norm_does_what_the_detector_says(method, detect):
    frozen, group = detect({"norm": "frozen"}), {"norm": "group"}
    assert detector_run(frozen, backbone_of(method())).backbone.norm == "frozen"
    assert detector_run(frozen, backbone_of(method(**group))).backbone.norm == "group"
    own_layers = method(options=CHANNELS | {"norm_layer": "groupnorm1"})
    assert detector_run(frozen, backbone_of(own_layers)).backbone.norm == "train"
    assert detector_run(detect(group), backbone_of(method())).backbone.norm == "train"


@pytest.mark.parametrize("wanted", [[4, 8, 16, 32], None])
def test_extra_levels_stand_for_those_that_the_encoder_has_not(method, detect, wanted):
    encoder = backbone_of(method(strides=[4, 8]))
    run = detector_run(detect({"strides": wanted}), encoder)
    assert run.backbone.strides == [4, 8]
    assert run.neck.extra_levels == 3
    assert build.detector(run, ["cat"]).neck.strides == [4, 8, 16, 32, 64]


def test_a_detector_of_one_level_has_the_levels_that_it_asks_for(method, detect):
    encoder = backbone_of(method(strides=[4, 8, 16, 32]))
    parts = {"neck": {"name": "single_level"}, "rpn": {"anchor_sizes": [[8, 16]]}}
    dilated = detector_run(detect({"output_stride": 16}, **parts), encoder)
    assert build.detector(dilated, ["cat"]).neck.strides == [16]
    c4 = detector_run(detect({"roi_stage": True}, **parts, head={"name": "res5"}), encoder)
    assert c4.backbone.strides == [4, 8, 16]
    assert build.detector(c4, ["cat"]).head.stage.channels == 64


def test_levels_that_nothing_can_stand_for_are_refused(method, detect):
    encoder = backbone_of(method(strides=[4, 8]))
    message = (
        r"detect.yaml: backbone.strides: expected levels that the encoders have, up to stride 8, .* got \[16, 32\]$"
    )
    sizes = {"rpn": {"anchor_sizes": [[16], [32], [48]]}}
    with pytest.raises(ValueError, match=message):
        detector_run(detect({"strides": [16, 32]}, **sizes), encoder)
    with pytest.raises(ValueError, match=r"got \[8, 32\]$"):
        detector_run(detect({"strides": [8, 32]}, **sizes), encoder)


def test_another_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"detect.yaml: expected a config with task pretrain, got detect$"):
        load_run(write_config(tmp_path, DETECT), "pretrain")


def test_the_shipped_detector_takes_every_shipped_encoder(tmp_path):
    encoders = {json.dumps(backbone_of(load(shipped(name))), sort_keys=True) for name in COMPARED}
    assert len(encoders) == 4  # cifar and imagenette, with either norm
    for encoder in map(json.loads, encoders):
        run = detector_run(shipped("compare/detect.yaml"), encoder)
        torch.manual_seed(0)
        save_backbone(Backbone(**encoder), tmp_path / "a.safetensors", provenance={})
        detector = build.detector(run, ["cat"])
        load_weights(detector.backbone, tmp_path / "a.safetensors", min_matched=1.0)
        assert detector.neck.strides == [8, 16, 32, 64]


@pytest.mark.parametrize("folder", ["cifar", "imagenette"])
def test_the_shipped_comparisons_share_what_they_must(folder):
    runs = {name: load(shipped(name)) for name in COMPARED if folder in name}
    check_shared(runs)
    assert norm_of(base_run(runs)) == "train"
    assert {name.split("/")[-1]: norm_of(run) for name, run in runs.items() if norm_of(run) != "train"} == {
        "cpc.yaml": "groupnorm1"
    }

"""Settings that no run can do anything with are named at once, with their line, before any file is read."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import yaml
from pydantic import create_model

from visionlab.config.load import ConfigError, load
from visionlab.config.part import From, Part, part_of
from visionlab.config.refusals import pretext_refusals
from visionlab.config.schema import Detect
from visionlab.config.shipped import shipped_names
from visionlab.data.synthetic import write_synthetic
from visionlab.models.backbone import Backbone
from visionlab.models.detector import NECKS
from visionlab.models.neck import Neck
from visionlab.pretext import Pretext

SHARED: dict[str, Any] = {
    "out": "runs/a",
    "loader": {"batch_size": 8},
    "train": {"steps": 10},
    "optimizer": {"name": "sgd", "lr": 0.1},
}
DETECT = SHARED | {
    "task": "detect",
    "data": {"name": "coco", "annotations": "a.json", "images": "images", "val_annotations": "v.json"},
    "backbone": {"name": "resnet18", "strides": [4, 8, 16, 32]},
}
PRETRAIN = SHARED | {
    "task": "pretrain",
    "data": {"name": "folder", "root": "images"},
    "pretext": {"name": "simclr"},
    "weights": "file",
}
SYNTHETIC = {"name": "synthetic", "root": "data", "unlabelled": 1, "labelled": 1, "validation": 1}


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Return the faults of a config with a few overrides."""
    monkeypatch.chdir(tmp_path)

    def faults(config: dict[str, Any], *overrides: str) -> list[str]:
        Path("a.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        try:
            load("a.yaml", overrides)
        except ConfigError as error:
            return error.faults
        return []

    return faults


@pytest.mark.parametrize(
    ("data", "val"),
    [
        ({"name": "coco", "annotations": "a.json", "images": "images"}, {"val_annotations": "v.json"}),
        ({"name": "voc", "root": "VOCdevkit", "image_sets": "VOC2007/train"}, {"val_image_sets": "VOC2007/val"}),
    ],
)
def test_an_evaluation_needs_images_to_evaluate_on(data, val, faults):
    config = {**DETECT, "data": data, "evaluate": {"metrics": "voc07"}}
    [fault] = faults(config)
    assert "evaluate: no effect without images to evaluate on" in fault
    assert faults({**config, "data": {**data, **val}}) == []
    assert faults({**config, "data": {**data, "val_fraction": 0.2}}) == []


@pytest.mark.parametrize(
    "override",
    [
        "out=''",
        "backbone.name=resnet999",
        "backbone.image_size=-4",
        "backbone.strides=[]",
        "backbone.frozen_stages=-1",
        "backbone.options={pretrained: true}",
        "checkpoints.every=0",
        "checkpoints.keep=0",
        "data.classes=[]",
        "data.classes=[cat, cat]",
        "data.limit=0",
        "evaluate.max_detections=0",
        "evaluate.max_detections=10",
        "evaluate={metrics: voc07, max_detections: 200}",
        "evaluate={metrics: voc12, backend: auto}",
        "head.canonical_size=0",
        "head.box_weights=[1, 1, 0, 1]",
        "head.fc_channels=0",
        "head.max_detections=0",
        "evaluate.augment={flip: false}",
        "evaluate.augment={sizes: [0]}",
        "head.box_loss=iou",
        "head.nms_sigma=0",
        "head.nms_threshold=-3",
        "head.ohem_nms_threshold=2",
        "head.pool_size=0",
        "head.positive_fraction=2",
        "head.positive_iou=0",
        "head.samples_per_image=0",
        "head.sampling_ratio=-1",
        "head.score_threshold=2",
        "head.smooth_l1_beta=-1",
        "loader.batch_size=0",
        "loader.workers=-1",
        "log.every=0",
        "neck={name: fpn, channels: 0}",
        "neck={name: fpn, channels: 48, norm: group}",
        "neck={name: fpn, extra_levels: -1}",
        "neck={name: simple_pyramid, channels: 0}",
        "optimizer.lr=-1",
        "optimizer.lr=0",
        "optimizer.lr=.inf",
        "optimizer.lr_factors={backbone: -1}",
        "optimizer.momentum=5",
        "optimizer.weight_decay=-1",
        "rpn.anchor_ratios=[]",
        "rpn.anchor_ratios=[0.0]",
        "rpn.anchor_sizes=[[8]]",
        "rpn.anchor_sizes=[[8], [8], [8], [8], [-8]]",
        "rpn.anchor_sizes=[[], [], [], [], []]",
        "rpn.negative_iou=0.8",
        "rpn.nms_threshold=-1",
        "rpn.positive_iou=7",
        "rpn={box_loss: giou, smooth_l1_beta: 1.0}",
        "rpn.samples_per_image=-4",
        "rpn.test_proposals=0",
        "rpn.train_candidates=-1",
        "train.accumulate=0",
        "train.clip_norm=-1",
        "train.ema_decay=2",
        "train.evaluate_every=11",
        "train.steps=0",
        "transform.extra=[{transform: Rotate, limits: 3}]",
        "transform.extra=[{transform: ToFloat}]",
        "transform.flip=2",
    ],
)
def test_detector(faults, override):
    [fault] = faults(DETECT | {"weights": "file"}, override)
    key = override.partition("=")[0]
    assert fault.startswith(f'override "{override}": {key}'), fault


@pytest.mark.parametrize(
    "override",
    [
        "data.limit=0",
        "data.root=[]",
        "optimizer={name: adamw, lr: 1, betas: [0.9, 1]}",
        "optimizer={name: sgd, lr: 1, momentum: 0, nesterov: true}",
        "pretext.blur=-1",
        "pretext.color_strength=3",
        "pretext.crop_scale=[0.9, 0.1]",
        "pretext.crop_scale=[0, 1]",
        "pretext.flip=7",
        "pretext.grayscale=3",
        "pretext.hidden_dim=0",
        "pretext.image_size=0",
        "pretext.projection_dim=0",
        "pretext.temperature=-1",
        "pretext={name: rotation, image_size: 0}",
        "pretext={name: rotation, flip: 7}",
        "pretext.extra=[{transform: Rotat}]",
        "pretext={name: rotation, extra: [{transform: Rotate}]}",
        "pretext={name: jigsaw, extra: [{transform: RandomGridShuffle}]}",
        "pretext={name: patch_position, jitter: 0.3}",
        "pretext={name: jigsaw, num_permutations: 1}",
        "pretext={name: dim, prior_weight: -1}",
        "pretext={name: dim, local_stride: 5}",
        "pretext={name: cpc, overlap: 1}",
        "data={name: coco, annotations: a.json, images: images, limit: 0}",
    ],
)
def test_pretraining(faults, override):
    [fault] = faults(PRETRAIN, override)
    key = override.partition("=")[0]
    assert fault.startswith(f'override "{override}": {key}'), fault


def test_what_a_method_asks_of_its_backbone(faults):
    text = PRETRAIN | {"pretext": {"name": "cpc"}, "backbone": {"name": "resnet18"}}
    [fault] = faults(text)
    assert "backbone.norm: expected group or frozen for cpc, got train" in fault
    assert not faults(text, "backbone.norm=group")
    assert not faults(text, "backbone.name=convnext_atto")  # it has no batch norm
    text = PRETRAIN | {"pretext": {"name": "dim", "local_stride": 2}, "backbone": {"name": "resnet18"}}
    [fault] = faults(text)
    assert "pretext.local_stride: expected one of [4, 8, 16] for resnet18, got 2" in fault
    assert not faults(text, "backbone.strides=[2, 4, 8]")


@pytest.mark.parametrize("config", [DETECT, PRETRAIN])
def test_drawn_images(faults, config):
    assert not faults(config | {"data": SYNTHETIC})
    for override in ("data.image_size=0", "data.labelled=-1"):
        [fault] = faults(config | {"data": SYNTHETIC}, override)
        assert f": {override.partition('=')[0]}: expected at least" in fault


def test_two_sources_of_images(faults):
    [fault] = faults(PRETRAIN, "data.list_file=list.txt")
    assert fault == "a.yaml:10: data: expected either root or list_file, got both"


def test_share_of_validation(faults):
    data = {"name": "coco", "annotations": "a.json", "images": "images", "val_fraction": 3}
    [fault] = faults(DETECT | {"data": data})
    assert fault.endswith("data.val_fraction: expected a number in (0, 1), got 3.0")


def test_all_sections_at_once_with_their_lines(faults):
    text = DETECT | {"loader": {"batch_size": 0}, "rpn": {"nms_threshold": -1}, "head": {"pool_size": 0}}
    assert faults(text, "train.steps=0") == [
        "a.yaml:3: loader.batch_size: expected at least 1, got 0",
        "a.yaml:23: rpn.nms_threshold: expected a number in [0, 1], got -1.0",
        "a.yaml:25: head.pool_size: expected at least 1, got 0",
        'override "train.steps=0": train.steps: expected at least 1, got 0',
    ]


def test_a_name_that_timm_does_not_know(faults):
    [fault] = faults(DETECT, "backbone.name=resnet999")
    assert "no timm model is called 'resnet999'; did you mean resnet" in fault
    assert not faults(DETECT, "backbone.name=resnet50.a1_in1k")
    assert not faults(DETECT, "backbone.name=vit_small_patch16_224_in21k")  # a name of earlier versions


def test_levels_are_those_of_the_backbone(faults):
    text = DETECT | {"backbone": {"name": "vit_tiny_patch16_224", "image_size": 32, "options": {"depth": 1}}}
    assert not faults(text, "rpn.anchor_sizes=[[8], [16]]")
    [fault] = faults(text, "rpn.anchor_sizes=[[8], [16], [32]]")
    assert "rpn.anchor_sizes: expected 2 lists of one length, one per level of strides [16, 32]" in fault
    assert not faults(text, "neck={name: simple_pyramid, level_strides: [8, 16]}")
    [fault] = faults(text, "neck={name: simple_pyramid, level_strides: [6]}")
    assert "neck.level_strides: expected 16 times or over a power of two, got 6" in fault


def test_levels_of_a_dilated_backbone(faults):
    text = DETECT | {"backbone": {"name": "resnet18", "output_stride": 16}, "neck": {"name": "single_level"}}
    assert not faults(text, "rpn.anchor_sizes=[[32, 64, 128]]")
    text["neck"] = {"name": "fpn"}
    [fault] = faults(text, "rpn.anchor_sizes=[[8], [16], [32], [64], [128]]")
    assert "rpn.anchor_sizes: expected 4 lists of one length, one per level of strides [4, 8, 16, 32]" in fault
    [fault] = faults(text, "backbone.strides=[4, 8]")
    assert "backbone.output_stride: expected the last of strides [4, 8], got 16" in fault


def test_a_head_and_the_stage_it_runs(faults):
    parts = {"backbone": {"name": "resnet18", "roi_stage": True}, "neck": {"name": "single_level"}}
    text = DETECT | parts | {"head": {"name": "res5"}}
    assert not faults(text, "rpn.anchor_sizes=[[32, 64, 128]]")
    [fault] = faults(text, "backbone.roi_stage=false")
    assert "backbone.roi_stage: expected true for the head res5, which runs the backbone's last stage" in fault
    [fault] = faults(text, "head={name: fast_rcnn}")
    assert "backbone.roi_stage: would have no effect, the head fast_rcnn does not run" in fault
    text["backbone"]["strides"] = [8, 16]
    [fault] = faults(text, "neck={name: fpn, channels: 64}")
    assert "head.pool: expected RoIs of 256 channels" in fault
    [fault] = faults(PRETRAIN, "backbone={name: resnet18, roi_stage: true}")
    assert "backbone.roi_stage: would have no effect, only the head of a detector runs the stage" in fault


@pytest.mark.parametrize(
    ("backbone", "fault"),
    [
        ("{name: vit_tiny_patch16_224, output_stride: 16}", "output_stride: timm cannot dilate vit_tiny_patch16_224"),
        ("{name: resnet18, frozen_stages: 9}", "frozen_stages: expected 0 to 4 for resnet18, got 9"),
        ("{name: resnet18, deform_stages: [9]}", "deform_stages: expected some of 1 to 4 for resnet18, got 9"),
        ("{name: resnet18, deform_stages: [1], frozen_stages: 1}", "deform_stages: stage 1 is frozen"),
        ("{name: resnet18, deform_stages: [4], deform_groups: 7}", "deform_groups: expected a divisor of the 256"),
        (
            "{name: convnext_atto, deform_stages: [3]}",
            "deform_stages: convnext_atto has no 3x3 convolutions",
        ),
    ],
)
def test_what_the_model_of_the_backbone_does_not_have(faults, backbone, fault):
    for config in (DETECT | {"weights": "file"}, PRETRAIN):
        [said] = faults(config, f"backbone={backbone}")
        assert f"backbone.{fault}" in said


@pytest.mark.parametrize(
    ("backbone", "fault"),
    [
        ("{name: resnet18, strides: [32], roi_stage: true}", "strides: expected some of [2, 4, 8, 16] for resnet18"),
        ("{name: vit_tiny_patch16_224, roi_stage: true}", "roi_stage: expected a model with several levels"),
    ],
)
def test_a_stage_that_the_model_does_not_have(faults, backbone, fault):
    text = DETECT | {"neck": {"name": "single_level"}, "head": {"name": "res5"}}
    [said] = faults(text, f"backbone={backbone}")
    assert f"backbone.{fault}" in said


@pytest.mark.parametrize("pool", ["ps_roi_pool", "ps_roi_align", "deform_ps_roi_pool"])
def test_a_pool_that_needs_maps_for_each_bin(faults, pool):
    text = DETECT | {"weights": "file", "head": {"pool": {"name": pool}}}
    [fault] = faults(text)
    assert "head.pool.output_size: expected k * k to divide the 256 channels to pool from" in fault
    assert not faults(text, "neck={name: fpn, channels: 245}")
    # What a single level has is up to the backbone: 512 channels.
    level = ("neck={name: single_level}", "rpn.anchor_sizes=[[32, 64]]")
    [fault] = faults(text, *level)
    assert "head.pool.output_size: expected k * k to divide the 512 channels to pool from" in fault
    assert not faults(text, *level, "head.pool.output_size=4")


def test_what_r_fcn_votes_with(faults):
    text = DETECT | {"weights": "file", "head": {"name": "rfcn"}}
    assert not faults(text)
    assert not faults(text, "head.pool={name: deform_ps_roi_pool, output_size: 3}")
    [fault] = faults(text, "head.pool={name: roi_align}")
    assert "head.pool.name: expected a position-sensitive pool, ps_roi_pool or ps_roi_align or" in fault
    [fault] = faults(text, "head.background_box=true", "head.class_agnostic=false")
    assert "head.background_box: no effect without class_agnostic" in fault


class Plain(Neck):
    """A neck without settings of a pyramid.

    Args:
        width: channels of each level.
    """

    def __init__(self, in_channels, strides, *, width: int = 8):
        super().__init__([width] * len(strides), strides, pooled_levels=[0, 1])

    def forward(self, features):
        return features


@pytest.fixture
def plain_neck(monkeypatch):
    monkeypatch.setitem(NECKS, "plain", Plain)
    part_of.cache_clear()
    rebuild = create_model("Detect", __base__=Detect, neck=(Annotated[Part, From(NECKS)], ...))
    yield rebuild
    part_of.cache_clear()


def test_a_neck_without_extra_levels(tmp_path, plain_neck):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(DETECT | {"weights": "file", "neck": {"name": "plain"}}))
    assert load(tmp_path / "a.yaml", [], plain_neck).neck.width == 8
    with pytest.raises(
        ConfigError, match=r"rpn\.anchor_sizes: expected 4 lists .* per level of strides \[4, 8, 16, 32\]"
    ):
        load(tmp_path / "a.yaml", ["rpn.anchor_sizes=[[8], [16]]"], plain_neck)


FLAT = {"pool_size": 5, "canonical_size": 112}


def test_settings_of_the_pool_that_stood_in_the_head(tmp_path):
    runs = []
    for head in (FLAT, {"pool": {"name": "roi_align", "output_size": 5, "canonical_size": 112}}):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(DETECT | {"weights": "file", "head": head}))
        runs.append(load(tmp_path / "a.yaml"))
    assert runs[0] == runs[1]
    assert runs[0].head.pool.output_size == 5


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "head.pool={name: roi_pool}",
            "a.yaml:24: head.pool_size: expected it as pool.output_size where pool is given, got both",
        ),
        ("head.pool_size=0", 'override "head.pool_size=0": head.pool_size: expected at least 1, got 0'),
        ("head.pool_size=x", 'override "head.pool_size=x": head.pool_size: wrong value, expected an integer, got "x"'),
    ],
)
def test_faults_of_moved_settings_are_told_where_they_are_written(faults, override, fault):
    [found] = faults(DETECT | {"weights": "file", "head": FLAT}, override)
    assert found.startswith(fault)


def test_the_kind_of_pool_is_a_choice(faults):
    text = DETECT | {"weights": "file", "head": {"pool": {"name": "roi_pool", "output_size": 3}}}
    assert not faults(text)
    [fault] = faults(text, "head.pool.sampling_ratio=2")
    assert "head.pool.sampling_ratio: unknown key" in fault
    [fault] = faults(text, "head.pool.canonical_size=0")
    assert fault.endswith("head.pool.canonical_size: expected more than 0, got 0.0")


CHECK = """
import sys
from visionlab.config.load import load
from visionlab.config.shipped import shipped, shipped_names
for name in shipped_names():
    # These have every method. Only the real backbone tells whether it has batch norm, as CPC must know, and whether it
    # can be dilated, made deformable or run on RoIs.
    text = shipped(name).read_text()
    asked = ("cpc", "output_stride", "roi_stage", "deform_stages")
    if name.startswith(("quickstart/", "examples/")) and not any(word in text for word in asked):
        load(shipped(name))
print([name for name in ("timm", "torchvision", "torch._dynamo") if name in sys.modules])
"""


def test_a_sound_config_is_checked_without_the_packages_that_take_seconds_to_import():
    assert shipped_names()
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_reading_a_config_leaves_the_random_generator_alone(faults):
    before = torch.get_rng_state()
    assert not faults(DETECT)
    assert faults(DETECT | {"backbone": {"name": "resnet18"}}, "rpn.nms_threshold=2")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("config", "section"), [(DETECT, "transform"), (PRETRAIN, "pretext")])
def test_extra_transforms_are_written_down_as_they_were_given(faults, config, section):
    extra = [{"transform": "Rotate", "limit": [-5, 5], "p": 0.3}]
    assert not faults(config, f"{section}.extra={extra}")
    resolved = load("a.yaml", [f"{section}.extra={extra}"]).model_dump(mode="json")
    assert resolved[section]["extra"] == extra


@pytest.mark.parametrize(
    ("config", "override"),
    [
        (DETECT, "head.fc_channels=1000000000"),
        (DETECT, "head={pool_size: 3000}"),
        (DETECT, "backbone={name: vit_tiny_patch16_224, image_size: 160000}"),
        (PRETRAIN, "pretext={name: moco, queue_size: 100000000000}"),
        (PRETRAIN, "pretext={name: patch_position, image_size: 100000000000}"),
    ],
)
def test_sizes_that_fit_no_memory_are_checked_without_taking_it(faults, config, override):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not faults(config, override)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_sizes_that_no_tensor_can_have_are_refused_in_a_sentence(faults):
    [fault] = faults(PRETRAIN, "pretext={name: vicreg, hidden_dim: 100000000000}")
    assert "pretext: cannot be built with these settings: RuntimeError: Storage size" in fault


@pytest.mark.slow
def test_every_whole_number_may_be_huge(tmp_path):
    program = Path(__file__).with_name("huge_settings.py")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, cwd=tmp_path)
    assert re.fullmatch(r"\d{3} checked\n", result.stdout), (result.stdout, result.stderr)
    assert result.returncode == 0


class Reading(Pretext):
    """A method that looks at its encoder.

    Args:
        size: of nothing.
    """

    def __init__(self, encoder, *, size: int = 1):
        super().__init__(encoder)
        assert encoder.settings["name"] == encoder.name
        self.width = encoder.settings["options"] or encoder.channels
        self.depth = len(encoder.model.layer4) if size == 2 else 0

    def forward(self, batch):
        raise NotImplementedError


@pytest.mark.parametrize("size", [1, 2])
def test_a_method_may_read_its_encoder_in_its_constructor(size):
    """What the stand-in does not have, the backbone is built for."""
    backbone = part_of(Backbone)(name="resnet18")
    assert not list(pretext_refusals(backbone, part_of(Reading, "reading")(name="reading", size=size)))


def test_epochs_are_answered_with_steps(faults):
    [fault] = faults(DETECT, "train.epochs=12")
    assert "train.epochs: unknown key. A run is counted in steps: steps = epochs * images / (loader.batch" in fault
    [fault] = faults(PRETRAIN | {"data": SYNTHETIC | {"unlabelled": 200}}, "train.epochs=12")
    assert fault.endswith("12 epochs of 200 images in batches of 8 are steps: 300")


def test_epochs_are_counted_in_the_data(faults, tmp_path):
    write_synthetic(tmp_path / "data", unlabelled=4, labelled=12, validation=2, image_size=32)
    folder = {"name": "folder", "root": str(tmp_path / "data" / "unlabelled")}
    [fault] = faults(PRETRAIN | {"data": folder}, "train.epochs=10")
    assert fault.endswith("10 epochs of 4 images in batches of 8 are steps: 5")
    files = {"annotations": "annotations/train.json", "images": "train", "val_fraction": 0.25}
    for data, images in (({"root": str(tmp_path / "data")}, 12), ({"root": str(tmp_path / "data"), **files}, 9)):
        name = {"name": "coco"} if "images" in data else {}
        [fault] = faults(DETECT | {"data": {**name, **data}}, "train.epochs=8")
        assert f"8 epochs of {images} images in batches" in fault


def test_factors_of_ones_own_are_not_looked_at(faults):
    name = f"{__name__}:own_factors"
    assert faults(PRETRAIN | {"optimizer": {"name": name, "rates": [0.1], "lr_factors": [2.0]}}) == []


def own_factors(module, *, rates: list[float], lr_factors: list[float]):
    """Build an optimizer whose setting of that name is another."""
    return torch.optim.SGD(module.parameters(), rates[0] * lr_factors[0])


@pytest.mark.parametrize(
    ("config", "overrides", "absent"),
    [
        (DETECT, ["optimizer.lr_factors={backbone: 0.1, neck: 2}"], ""),
        (DETECT, ["optimizer.lr_factors={backbones: 0.1, neck: 2}"], "backbones"),
        (DETECT, ["optimizer.lr_factors={offset_*: 0.1}"], "offset_*"),
        (DETECT, ["optimizer.lr_factors={offset_*: 0.1}", "backbone.deform_stages=[4]"], ""),
        (DETECT, ["optimizer.lr_factors={backbone: 0.1}", "backbone.frozen_stages=4", "weights=file"], "backbone"),
        (PRETRAIN, ["optimizer.lr_factors={encoder: 0.1}"], ""),
        (PRETRAIN, ["optimizer.lr_factors={head: 0.1}"], "head"),
    ],
    ids=str,
)
def test_factors_for_what_is_not_trained(faults, config, overrides, absent):
    said = [fault.partition(": optimizer.lr_factors: ")[2] for fault in faults(config, *overrides)]
    assert said == ([f"no trainable parameter lies in a submodule named {absent}"] if absent else [])

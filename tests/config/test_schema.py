"""What configs of real runs may say, those that ship among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from visionlab.config import build
from visionlab.config.load import ConfigError, json_schema, load, show
from visionlab.config.schema import Detect, Pretrain
from visionlab.config.shipped import copy_configs, shipped, shipped_names
from visionlab.pretext import PRETEXTS

PRETRAIN = """\
task: pretrain
out: runs/a
data: {name: folder, root: images}
pretext: {name: rotation}
loader: {batch_size: 8}
train: {steps: 10}
optimizer: {name: sgd, lr: 0.1}
"""
DETECT = """\
task: detect
out: runs/b
data: {name: coco, annotations: a.json, images: images}
loader: {batch_size: 8}
train: {steps: 10}
optimizer: {name: sgd, lr: 0.1}
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(text: str, *overrides: str):
        Path("a.yaml").write_text(text)
        return load("a.yaml", overrides)

    return read


# --- shipped configs -------------------------------------------------------------------------------------------------


COMMANDS = {"compare/detectors": "benchmarks/detector_family.py", "compare": "tools/compare.py"}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_config(name, tmp_path):
    run = load(shipped(name))
    lines = shipped(name).read_text().splitlines()
    assert len(lines) <= 40
    opening = " ".join(line for line in lines[: lines.index(f"task: {run.task}")])
    folder = name.rpartition("/")[0]
    command = next((command for start, command in COMMANDS.items() if folder.startswith(start)), "tools/train.py")
    for said in ("arXiv:", command, "ost and result: "):
        assert said in opening, f"the opening comment does not say {said}"
    (tmp_path / "shown.yaml").write_text(show(run))
    assert load(tmp_path / "shown.yaml") == run


@pytest.mark.parametrize("name", [*PRETEXTS, "densecl"])
def test_every_method_has_a_config_for_real_use_and_a_small_one(name):
    names = (f"{name}_resnet50.yaml", f"examples/{name}_small.yaml")
    large, small = (yaml.safe_load(shipped(name).read_text()) for name in names)
    assert large["pretext"]["name"] == small["pretext"]["name"] == ("moco" if name == "densecl" else name)
    assert large["backbone"]["name"] == "resnet50"
    assert small["device"] == "cpu"


COMMANDS = {"compare/detectors": "benchmarks/detector_family.py", "compare": "tools/compare.py"}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_config_agrees_with_the_json_schema(name):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    data = json.loads(json.dumps(load(shipped(name)).model_dump()))
    jsonschema.validate(data, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "extra": 1}, json_schema())


def test_shipped_configs_are_copied_out(tmp_path):
    copies = copy_configs(tmp_path / "mine")
    assert [str(path.relative_to(tmp_path / "mine")) for path in copies] == shipped_names()
    assert copy_configs(tmp_path / "mine") == copies
    copies[0].write_text("mine")
    with pytest.raises(ValueError, match="differs from the shipped config"):
        copy_configs(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"no shipped config none\.yaml, expected one of .*simclr_resnet50\.yaml"):
        shipped("none.yaml")


# --- the JSON Schema -------------------------------------------------------------------------------------------------


def test_json_schema_knows_every_method_and_what_its_settings_mean():
    schema = json_schema()
    kinds = {name: schema["$defs"][name]["properties"] for name in ("Pretrain", "Detect")}
    methods = {
        schema["$defs"][ref["$ref"].split("/")[-1]]["properties"]["name"]["const"]: ref
        for ref in kinds["Pretrain"]["pretext"]["anyOf"][0]["oneOf"]
    }
    assert list(methods) == list(PRETEXTS)
    simclr = schema["$defs"][methods["simclr"]["$ref"].split("/")[-1]]
    assert simclr["description"].startswith("Contrast two random views")
    assert simclr["additionalProperties"] is False
    assert "temperature" in simclr["properties"]["temperature"]["description"]
    assert kinds["Detect"]["weights"]["description"].startswith("The file that the backbone starts from")


def test_every_setting_is_explained():
    definitions = json_schema()["$defs"]
    bare = [
        f"{section}.{key}"
        for section, definition in definitions.items()
        for key, setting in definition.get("properties", {}).items()
        if "description" not in setting and not setting.keys() & {"$ref", "oneOf", "const"}
    ]
    assert not bare


# --- settings that have no effect or no meaning beside others ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "overrides", "key"),
    [
        (PRETRAIN, ["min_matched=0.5"], "min_matched"),
        (PRETRAIN, ["backbone.frozen_stages=1"], "backbone.frozen_stages"),
        (PRETRAIN, ["schedule={name: cosine, warmup_steps: 10}"], "schedule.warmup_steps"),
        (PRETRAIN, ["schedule={name: constant, warmup_factor: 0.1}"], "schedule.warmup_factor"),
        (PRETRAIN, ["schedule={name: multistep, milestones: [10]}"], "schedule.milestones"),
        (PRETRAIN, ["device=cpu", "train.precision=fp16"], "train.precision"),
        (PRETRAIN, ["train.steps=0"], "train.steps"),
        (PRETRAIN, ["train.evaluate_every=5"], "train.evaluate_every"),
        (DETECT, ["train.evaluate_every=5"], "train.evaluate_every"),
        (DETECT, ["train.evaluate_every=11", "data.val_annotations=v.json"], "train.evaluate_every"),
        (DETECT, ["data.val_annotations=v.json", "data.val_fraction=0.1"], "data.val_fraction"),
        (DETECT, ["data.val_images=val"], "data.val_images"),
        (DETECT, ["data.split_seed=1"], "data.split_seed"),
        (DETECT, ["data.val_fraction=1.5"], "data.val_fraction"),
        (DETECT, ["evaluate.max_detections=11"], "evaluate"),
        (DETECT, ["transform.short_side=2000"], "transform.max_size"),
        (DETECT, ["resize={short_side: 0, max_size: 10}", "data.val_fraction=0.1"], "resize.short_side"),
        (DETECT, ["resize={short_side: 10, max_size: 10, extra: 1}"], "resize.extra"),
    ],
)
def test_conflict(read, text, overrides, key):
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    [fault] = caught.value.faults
    assert f": {key}: " in fault, fault


def test_conflicts_name_the_line(read):
    with pytest.raises(ConfigError, match=r"^a\.yaml:8: min_matched: no effect without weights$"):
        read(PRETRAIN + "min_matched: 0.5")
    assert read(PRETRAIN + "min_matched: 0.5", "weights=file").min_matched == 0.5


# --- live objects ----------------------------------------------------------------------------------------------------


def test_evaluation_sees_the_largest_size_of_training_unless_told(read):
    largest = build.evaluation_size(read(DETECT, "transform.short_side=[64, 96]", "transform.max_size=128"))
    assert largest == {"short_side": 96, "max_size": 128}
    told = build.evaluation_size(read(DETECT, "resize={short_side: 32, max_size: 48}"))
    assert told == {"short_side": 32, "max_size": 48}


def test_kinds_of_run(read):
    assert isinstance(read(PRETRAIN), Pretrain)
    assert isinstance(read(DETECT), Detect)
    assert list(yaml.safe_load(show(read(DETECT))))[:8] == [
        "task",
        "out",
        "seed",
        "device",
        "deterministic",
        "weights",
        "min_matched",
        "data",
    ]


def test_detector_has_the_settings_of_its_sections(read):
    run = read(DETECT, "backbone.name=resnet18", "neck.channels=32", "head.fc_channels=16", "neck.name=fpn")
    detector = build.detector(run, ["cat", "dog"])
    assert detector.classes == ["cat", "dog"]
    assert detector.settings["backbone"]["name"] == "resnet18"
    assert detector.neck.channels[0] == 32
    assert detector.head.fc1.out_features == 16

"""Parts of somebody's own package, named in a config as ``package.module:Name``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from own_parts import write_package
from tiny_runs import DETECT, PRETRAIN, read_rows, visionlab, write_config

from visionlab import run
from visionlab.config.load import json_schema, load, show
from visionlab.models.detector import read_detector

BYOL = {"name": "mypackage.byol:BYOL", "momentum": 0.9}


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch) -> Path:
    write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(run, "write_report", lambda folder: folder / "report.html")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


def test_a_method_trains_and_goes_on_where_it_was_stopped(tmp_path):
    own = {"pretext": BYOL, "checkpoints": {"every": 2, "keep": 5}}
    whole, halves = (write_config(tmp_path, PRETRAIN, name, **own) for name in ("whole", "halves"))
    assert visionlab("train", whole, halves, "train.steps=4") == 0
    (tmp_path / "halves" / "checkpoints" / "step_00000004.pt").unlink()
    assert visionlab("train", halves, "train.steps=4") == 0
    assert read_rows(tmp_path / "halves") == read_rows(tmp_path / "whole")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step_00000004.pt")["states"]["task"]
        for name in ("whole", "halves")
    ]
    assert any("target" in name for name in states[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_resolved_config_loads_to_the_same_run_and_agrees_with_the_schema(tmp_path):
    config = write_config(tmp_path, PRETRAIN, pretext=BYOL, schedule={"name": "mypackage.byol:halved", "at": 2})
    loaded = load(config)
    assert loaded.pretext.arguments().items() >= {"image_size": 32, "momentum": 0.9, "sizes": (8, 4)}.items()
    (tmp_path / "shown.yaml").write_text(show(loaded))
    assert load(tmp_path / "shown.yaml") == loaded
    jsonschema.validate(json.loads(json.dumps(loaded.model_dump())), json_schema())


def test_a_head_stands_in_the_file_of_the_detector_and_builds_again(tmp_path, monkeypatch):
    head = DETECT["head"] | {"name": "mypackage.byol:WideHead"}
    assert visionlab("train", write_config(tmp_path, DETECT, head=head)) == 0
    file = tmp_path / "detect" / "detector.safetensors"
    assert type(read_detector(file).head).__name__ == "WideHead"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    with pytest.raises(
        ValueError,
        match=r"detector\.safetensors: the .*name: mypackage\.byol:WideHead cannot be imported: ModuleNotFoundError",
    ):
        read_detector(file)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "mypackage.byol:Plain", "lr": 0.01, "speed": 2.0, "weight_decay": 0.1, "lr_factors": {"encoder": 0.5}},
        {"name": "mypackage.byol:descent", "lr": 0.01, "slow": True},
    ],
)
def test_optimizers_and_schedules(tmp_path, optimizer):
    schedule = {"name": "mypackage.byol:halved", "at": 1}
    assert visionlab("train", write_config(tmp_path, PRETRAIN, optimizer=optimizer, schedule=schedule)) == 0
    rates = [row["lr"] for row in read_rows(tmp_path / "pretrain") if "lr" in row]
    assert rates == pytest.approx([0.01, 0.005, 0.005])


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "pretext.name=mypackage.bool:BYOL",
            "pretext.name: mypackage.bool:BYOL cannot be imported: ModuleNotFoundError",
        ),
        (
            "pretext.name=nopackage:BYOL",
            "pretext.name: nopackage:BYOL cannot be imported: ModuleNotFoundError: No module",
        ),
        ("pretext.name=mypackage.torn:BYOL", "pretext.name: mypackage.torn:BYOL cannot be imported: ModuleNotFound"),
        (
            "pretext.name=mypackage.byol:BYOl",
            "pretext.name: expected something called 'BYOl' in mypackage.byol, there is none. Did you mean 'BYOL'?",
        ),
        ("pretext.name='mypackage.byol:'", "pretext.name: expected something called '' in mypackage.byol"),
        ("pretext.name=:BYOL", "pretext.name: :BYOL cannot be imported: ValueError"),
        ("pretext.name=torch.nn:Linear", "pretext.name: expected a subclass of Pretext, got torch.nn:Linear"),
        (
            "pretext.name=mypackage.byol:NUMBER",
            "pretext.name: expected a class or function of Python, got mypackage.byol:NUMBER, a",
        ),
        ("pretext.name=os:system", "pretext.name: expected a class or function of Python, got os:system, a builtin"),
        ("pretext.name=mypackage.byol:Vague", "pretext.name: expected a subclass of Pretext"),
        ("schedule.name=mypackage.byol:Vague", "schedule.name: mypackage.byol:Vague has settings that a config cannot"),
        ("pretext.momentum=3", "pretext.momentum: expected a number in [0, 1], got 3"),
        ("pretext.momentun=3", 'pretext.momentun: unknown key. Did you mean "momentum"? Keys here: name, '),
        ("pretext.sizes=[1, x]", 'pretext.sizes.1: wrong value, expected an integer, got "x"'),
        ("pretext={name: mypackage.byol:Broken}", "pretext: cannot be built with these settings: KeyError: 'nothing'"),
        (
            "optimizer={name: mypackage.byol:Plain}",
            "optimizer.lr: missing, expected a number (the learning rate, before the",
        ),
        ("optimizer={name: mypackage.byol:Plain, lr: 1, speed: -1}", "optimizer.speed: Invalid speed: -1"),
        ("optimizer={name: torch.nn:Linear, lr: 1}", "optimizer.name: expected a subclass of Optimizer, got torch.nn"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, capsys, override, fault):
    config = write_config(tmp_path, PRETRAIN, pretext=BYOL)
    assert visionlab("train", "--check", config, override) == 2
    errors = capsys.readouterr().err
    assert f'override "{override}": {fault}' in errors
    assert "Traceback" not in errors

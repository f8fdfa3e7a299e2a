"""What every method of the table must do: learn, survive a restart, hand on its encoder, show a collapse."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from small_methods import VARIANTS, backbone_section, batch_of, build, section
from tiny_runs import DETECT, PRETRAIN, read_file, read_rows, visionlab, write_config

from visionlab import run
from visionlab.pretext import PRETEXTS
from visionlab.tasks.pretrain import PretrainTask

pytestmark = pytest.mark.parametrize(
    "method", [*PRETEXTS, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)]
)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda folder: folder / "report.html")


@pytest.fixture
def make_task() -> Callable[[str], PretrainTask]:
    return lambda method: PretrainTask(build(method))


def test_losses_are_finite_and_reach_every_parameter(method, make_task):
    task = make_task(method)
    losses = task(batch_of(task.pretext))
    assert losses
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    # A parameter without a gradient stops training on several processes.
    assert not [name for name, parameter in trained.items() if parameter.grad is None]
    assert task.pretext.encoder.model.conv1.weight.grad.abs().max() > 0


def test_autocast_leaves_losses_and_gradients_finite(method, make_task):
    task = make_task(method)
    with torch.autocast("cpu", torch.bfloat16):
        losses = task(batch_of(task.pretext))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters() if parameter.requires_grad)


def test_training_on_one_batch_lowers_the_loss(method, make_task):
    task = make_task(method)
    batch = batch_of(task.pretext)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        loss = sum(task(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # and no after_step: as the memory moved, the loss would become another
        history.append(loss.item())
    assert np.mean(history[-4:]) < 0.8 * np.mean(history[:4])


def test_a_dead_encoder_is_called_collapsed(method, make_task):
    task = make_task(method)
    batch = batch_of(task.pretext)
    task(batch)
    assert task.warnings() == []
    assert task.meters()["embedding_std"] > 0.1
    assert task.meters()["effective_rank"] > 1.5
    for parameter in task.pretext.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    task(batch)
    assert "COLLAPSED" in task.warnings()[0]
    assert task.meters()["embedding_std"] == 0


def test_its_encoder_becomes_a_detector_backbone(method, tmp_path, capsys):
    """The whole wire: a run's file, in timm's own names, fits timm's model and the detector without a rest."""
    weights = tmp_path / "pretrain" / "backbone.safetensors"
    backbone = backbone_section(method)
    configs = (
        write_config(tmp_path, PRETRAIN, pretext=section(method), backbone=backbone),
        write_config(tmp_path, DETECT, backbone=backbone, weights=str(weights), min_matched=1.0, train={"steps": 1}),
    )
    assert visionlab("train", *configs) == 0
    assert "(100.0%) and" in capsys.readouterr().out
    rows = read_rows(tmp_path / "pretrain")
    assert len(rows) == 3
    assert all({"meters/embedding_std", "meters/effective_rank"} <= row.keys() for row in rows)

    description, tensors = read_file(weights)
    expected = {
        "format": "1",
        "name": "resnet18",
        "method": section(method)["name"],
        "steps": "3",
        "images": "12",
        "norm": backbone.get("norm", "train"),
    }
    assert description | expected == description
    assert {"normalization", "visionlab", "settings"} <= description.keys()
    model = timm.create_model("resnet18", num_classes=0, **PRETRAIN["backbone"]["options"])
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all("running_" in name and expected["norm"] == "group" for name in missing)  # GroupNorm has no statistics


def test_a_run_that_was_killed_equals_one_that_was_not(method, tmp_path, monkeypatch):
    sections = {"pretext": section(method), "backbone": backbone_section(method)}
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        write_config(tmp_path / folder, PRETRAIN, **sections, train={"steps": 4}, checkpoints={"every": 2})
    assert visionlab("train", tmp_path / "whole" / "pretrain.yaml") == 0

    after_step = PretrainTask.after_step

    def crash(self: PretrainTask, step: int, steps: int) -> None:
        after_step(self, step, steps)
        if step == 2:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTask, "after_step", crash)
        with pytest.raises(RuntimeError, match="killed"):
            visionlab("train", tmp_path / "killed" / "pretrain.yaml")
    assert visionlab("train", tmp_path / "killed" / "pretrain.yaml") == 0
    assert read_rows(tmp_path / "killed" / "pretrain") == read_rows(tmp_path / "whole" / "pretrain")
    expected, found = (
        torch.load(tmp_path / folder / "pretrain" / "checkpoints" / "step_00000004.pt", weights_only=True)["states"]
        for folder in ("whole", "killed")
    )
    for part in ("task", "optimizer"):  # heads, slow copies, queues, banks; moments
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)

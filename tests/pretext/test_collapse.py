"""The collapse meters against embeddings whose answer is known, and on methods that are made to collapse."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_methods import batch_of, build, section
from tiny_runs import PRETRAIN, visionlab, write_config

from visionlab.pretext import PRETEXTS, MoCo, PretextOutput, VICReg, simclr
from visionlab.pretext.collapse import collapse_meters, collapse_warnings, effective_rank, embedding_std
from visionlab.structures import ViewBatch
from visionlab.tasks import pretrain
from visionlab.tasks.pretrain import PretrainTask


def sphere(rows=4096, dimensions=16):
    return torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_std_of_even_directions_is_one():
    assert embedding_std(sphere()) == pytest.approx(1, abs=0.01)
    assert embedding_std(7 * sphere()) == pytest.approx(1, abs=0.01)


def test_std_of_one_direction_is_zero():
    assert embedding_std(torch.ones(8, 5) * torch.arange(1, 9)[:, None]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5, 12])
def test_effective_rank_of_equal_singular_values_is_their_number(rank):
    left, _ = torch.linalg.qr(sphere(200, 12) - sphere(200, 12).mean(0))
    right, _ = torch.linalg.qr(sphere(12, 12))
    assert effective_rank(left[:, :rank] @ right[:rank]) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_ignores_the_mean_and_the_scale():
    rows = sphere(64, 8)
    assert effective_rank(100 + 3 * rows) == pytest.approx(effective_rank(rows).item(), rel=1e-3)


def test_effective_rank_of_equal_rows_is_one():
    assert effective_rank(torch.ones(8, 4)) == pytest.approx(1, abs=1e-3)


def test_warnings():
    rows = sphere(64, 8)
    assert collapse_warnings(rows) == []
    assert "COLLAPSED" in collapse_warnings(torch.ones(64, 8) + 1e-4 * rows)[0]
    line = torch.linspace(-1, 1, 64)[:, None] * torch.ones(8)
    assert "COLLAPSED to a line" in collapse_warnings(line)[0]


def test_the_projection_is_looked_at_as_well():
    rows, point = sphere(64, 8), torch.ones(64, 4)
    line = torch.linspace(-1, 1, 64)[:, None] * torch.ones(4)
    assert collapse_warnings(rows, rows) == []
    assert collapse_warnings(rows, point)[0].startswith("the projection has COLLAPSED: all images get nearly the same")
    assert collapse_warnings(rows, line)[0].startswith("the projection has COLLAPSED to a line")
    assert len(collapse_warnings(point, point)) == 2
    assert set(collapse_meters(rows)) == {"embedding_std", "effective_rank"}
    meters = collapse_meters(rows, point)
    assert meters["embedding_std"] > 0.9
    assert meters["projection_std"] == pytest.approx(0, abs=1e-6)
    assert meters["projection_rank"] == pytest.approx(1, abs=1e-3)


# ------------------------------------------------------------------------------------------------ forced collapses

POINT = (
    "the projection has COLLAPSED: all images get nearly the same projection (projection_std is below 0.05); the loss "
    "has nothing to compare and the encoder stops learning"
)
VARIANCE = (
    "the projection has COLLAPSED: its dimensions hardly vary (variance is above 0.9); raise the weight of the "
    "variance or lower the learning rate"
)


class WithoutStopGradient(MoCo):
    """Keys that follow the queries as these follow them, and nothing else to compare with."""

    def forward(self, batch: ViewBatch) -> PretextOutput:
        output, other = super().forward(batch), super().forward(replace(batch, views=batch.views[::-1]))
        return replace(output, losses={"agreement": -F.cosine_similarity(output.projection, other.projection).mean()})


def train(method: str, steps: int = 60, **weights) -> PretrainTask:
    """Train a method on ever new views of twelve images, fast enough for a collapse."""
    task = PretrainTask(build(method, norm="train"))
    for name, value in weights.items():
        task.pretext.weights[name] = value
    optimizer = torch.optim.Adam(task.parameters(), lr=2e-2)
    for step in range(steps):
        optimizer.zero_grad()
        sum(task(batch_of(task.pretext, range(12), epoch=step)).values()).backward()
        optimizer.step()
        task.after_step(step, steps)
        assert step or task.warnings() == []
    return task


def warnings_without(monkeypatch, place: object, name: str, task: PretrainTask) -> list[str]:
    """Return what a task warns of when one of its meters is gone."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, lambda *_: [])
        return task.warnings()


def test_views_that_only_agree_collapse_without_stop_gradient(monkeypatch):
    assert train("moco", steps=8).warnings() == []
    monkeypatch.setitem(PRETEXTS, "moco", WithoutStopGradient)
    collapsed = train("moco", steps=8)
    assert collapsed.warnings() == [POINT]
    assert warnings_without(monkeypatch, pretrain, "collapse_warnings", collapsed) == []


@pytest.mark.slow
def test_without_negatives_contrast_collapses(monkeypatch):
    def only_positives(first, second, temperature):
        return -F.cosine_similarity(first, second).mean() / temperature, torch.tensor(0.0)

    assert train("simclr").warnings() == []
    monkeypatch.setattr(simclr, "nt_xent", only_positives)
    collapsed = train("simclr")
    assert POINT in collapsed.warnings()
    assert warnings_without(monkeypatch, pretrain, "collapse_warnings", collapsed) == []


@pytest.mark.slow
def test_without_variance_and_covariance_vicreg_collapses(monkeypatch):
    assert train("vicreg").warnings() == []
    collapsed = train("vicreg", variance=0.0, covariance=0.0)
    assert collapsed.meters()["variance"] > 0.9
    assert VARIANCE in collapsed.warnings()  # lengths vanish, which the meters of all methods need not see
    assert VARIANCE not in warnings_without(monkeypatch, VICReg, "warnings", collapsed)


def test_a_projection_can_collapse_under_a_healthy_encoder():
    task = PretrainTask(build("simclr"))
    last = task.pretext.projection[-1]
    torch.nn.init.normal_(last.weight, std=1e-4)
    torch.nn.init.ones_(last.bias)
    losses = task(batch_of(task.pretext))
    assert losses["contrast"].item() == pytest.approx(math.log(2 * 8 - 1), abs=1e-3)  # where such a run gets stuck
    assert task.meters()["embedding_std"] > 0.1
    assert task.meters()["projection_std"] < 0.01
    assert task.warnings() == [POINT]


@pytest.mark.slow
def test_a_run_says_that_it_has_collapsed(tmp_path, capsys):
    for weight, collapses in ((0.0, True), (25.0, False)):
        pretext = section("vicreg") | {"variance": weight, "covariance": weight / 25}
        sections = {"optimizer": {"name": "adamw", "lr": 0.02}, "loader": {"batch_size": 12, "workers": 0}}
        config = write_config(tmp_path, PRETRAIN, str(collapses), pretext=pretext, train={"steps": 60}, **sections)
        assert visionlab("train", config) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert [sentence in said for sentence in (POINT, VARIANCE)] == [collapses, collapses]

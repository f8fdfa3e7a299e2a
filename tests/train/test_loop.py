import json
from itertools import islice

import pytest
import torch
from torch import nn
from toy import LR, Toy, batches, toy_run

from visionlab.train.guard import NonFiniteError


def weights(task):
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])


def reference(steps=12, batch_size=8, clip_norm=None, ema_decay=None):
    """Train the toy task the plain way, with torch's own optimizer and schedulers."""
    task = Toy(noisy=False)
    decayed = [parameter for parameter in task.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in task.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[3])
    average = weights(task).clone()
    for step, batch in enumerate(islice(batches(batch_size)(0), steps)):
        optimizer.zero_grad()
        sum(task(batch).values()).backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(task.parameters(), clip_norm)
        optimizer.step()
        scheduler.step()
        decay = min(ema_decay or 0, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights(task)
    return average


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1.0}, {"ema_decay": 0.9}], ids=str)
def test_the_loop_is_plain_training(tmp_path, settings):
    toy_run(tmp_path, task := Toy(noisy=False), **settings)
    torch.testing.assert_close(weights(task), reference(**settings), rtol=1e-12, atol=1e-12)


def test_two_halves_accumulated_are_one_batch(tmp_path):
    toy_run(tmp_path / "halves", halves := Toy(noisy=False), batch_size=4, accumulate=2)
    toy_run(tmp_path / "one", one := Toy(noisy=False), batch_size=8)
    torch.testing.assert_close(weights(halves), weights(one), rtol=1e-12, atol=1e-12)


def test_nothing_depends_on_the_random_state_before_the_run(tmp_path):
    results = []
    for number in range(2):
        task = Toy()
        torch.manual_seed(number)
        toy_run(tmp_path / str(number), task, steps=4)
        results.append(weights(task))
    assert torch.equal(*results)


@pytest.mark.usefixtures("fp16_on_cpu")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_nearly_the_same(tmp_path, precision):
    toy_run(tmp_path / "full", full := Toy(noisy=False).float())
    toy_run(tmp_path / precision, mixed := Toy(noisy=False).float(), precision=precision)
    error = (weights(full) - weights(mixed)).abs().max()
    assert 0 < error < 0.05
    scaler = torch.load(tmp_path / precision / "checkpoints/step_00000012.pt", weights_only=True)["states"]["scaler"]
    assert ("scale" in scaler) == (precision == "fp16")


class Convolution(Toy):
    def __init__(self):
        super().__init__(noisy=False)
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, batch):
        self.seen = batch.views[0]
        self.weight_layout = self.convolution.weight.is_contiguous(memory_format=torch.channels_last)
        return {"square": self.convolution(batch.views[0] / 255.0).square().mean()}


def test_channels_last_lays_out_weights_and_images(tmp_path):
    toy_run(tmp_path / "last", last := Convolution(), channels_last=True)
    toy_run(tmp_path / "first", first := Convolution())
    assert last.seen.is_contiguous(memory_format=torch.channels_last)
    assert last.weight_layout
    torch.testing.assert_close(weights(last), weights(first), rtol=1e-4, atol=1e-6)


class Exploding(Toy):
    """A task that goes wrong at one step, in its loss or only in its gradient."""

    def __init__(self, step, where):
        super().__init__(noisy=False)
        self.step, self.where, self.calls = step, where, 0

    def forward(self, batch):
        losses = super().forward(batch)
        self.calls += 1
        if self.calls == self.step:
            zero = (self.last.bias * 0).sum()
            losses["size"] = losses["size"] + (zero / 0 if self.where == "loss" else zero.abs().sqrt())
        return losses


@pytest.mark.parametrize(("where", "said"), [("loss", "the loss size is nan"), ("gradient", "the gradient is nan")])
@pytest.mark.parametrize("look_every", [1, 10])
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, where, said, look_every):
    monkeypatch.setattr("visionlab.train.loop.LOOK_EVERY", {"cpu": look_every})
    with pytest.raises(NonFiniteError) as error:
        toy_run(tmp_path, Exploding(step=5, where=where), checkpoint_every=4)
    assert str(error.value) == f"{said} in step 5; images: {', '.join(f'{i}.jpg' for i in range(32, 40))}"
    assert (error.value.step, len(error.value.files)) == (5, 8)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004.pt"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["error"] == str(error.value)
    assert rows[-1]["files"] == error.value.files
    saved = torch.load(tmp_path / "checkpoints/step_00000004.pt", weights_only=True)["states"]["task"]
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.usefixtures("fp16_on_cpu")
def test_fp16_skips_a_gradient_that_is_not_finite(tmp_path):
    toy_run(tmp_path, task := Exploding(step=5, where="gradient").float(), precision="fp16")
    assert task.calls == 12
    assert weights(task).isfinite().all()


def test_evaluation_sees_the_average_and_the_best_is_kept(tmp_path):
    task = Toy(noisy=False)
    seen, kept = {}, {}
    scores = {5: 0.1, 10: 0.4, 12: 0.3}

    def evaluate(step):
        task.eval()
        seen[step] = weights(task)
        return {"AP": scores[step]}

    def save_best(step):
        kept[step] = weights(task)

    best = toy_run(tmp_path, task, ema_decay=0.9, evaluate=evaluate, save_best=save_best, evaluate_every=5)
    assert (best.value, best.step) == (0.4, 10)
    assert list(seen) == [5, 10, 12]
    assert list(kept) == [5, 10]
    assert torch.equal(kept[10], seen[10])
    assert torch.equal(weights(task), seen[12])
    torch.testing.assert_close(seen[12], reference(ema_decay=0.9), rtol=1e-12, atol=1e-12)
    assert task.training
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if "eval/AP" in row] == [{"step": s, "eval/AP": v} for s, v in scores.items()]


@pytest.mark.parametrize("wrong", [{}, {"error": torch.zeros(2, requires_grad=True)}], ids=["no loss", "no scalar"])
def test_a_task_returns_scalar_losses(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(Toy, "forward", lambda task, batch: wrong)
    with pytest.raises(ValueError, match="same scalar losses at every call"):
        toy_run(tmp_path, Toy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "^steps: expected at least 1, got 0$"),
        ({"accumulate": 0}, "^accumulate: expected at least 1, got 0$"),
        ({"clip_norm": 0.0}, r"^clip_norm: expected more than 0, got 0\.0$"),
        ({"ema_decay": 1.0}, r"^ema_decay: expected a number in \(0, 1\), got 1\.0$"),
        ({"precision": "fp16"}, "^precision: expected fp32 or bf16 on the CPU, got fp16$"),
        ({"evaluate_every": 0}, "^evaluate_every: expected 1 to steps, "),
        ({"evaluate_every": 5}, "no effect without an evaluation"),
    ],
)
def test_settings_without_sense_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        toy_run(tmp_path, Toy(), **settings)

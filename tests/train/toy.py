"""A tiny run for the tests of the loop; as a program, it trains and may be told to die.

It uses all that a resumed run could get wrong: momentum, warmup, accumulation, a dropout mask from torch's generator,
numpy's and Python's generators, running statistics, a queue that moves after each step, an average of weights.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from visionlab import distributed
from visionlab.seeding import derive_seed
from visionlab.structures import ViewBatch
from visionlab.train.checkpoint import Checkpoints
from visionlab.train.guard import Interrupted
from visionlab.train.log import Log
from visionlab.train.loop import train
from visionlab.train.optim import adamw, sgd
from visionlab.train.schedule import cosine
from visionlab.train.task import Task

LR = 0.01


class Toy(Task):
    """Regression on noise; can be told to die after a step."""

    def __init__(self, noisy: bool = True, die_after: int | None = None, by: int = signal.SIGKILL) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 5)
        self.norm = nn.BatchNorm1d(5) if noisy else nn.Identity()
        self.last = nn.Linear(5, 1)
        self.noisy, self.die_after, self.by = noisy, die_after, by
        self.register_buffer("queue", torch.zeros(4, 5))
        self.double()

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        pixels = batch.views[0].to(self.last.weight.dtype).flatten(1) / 255
        hidden = self.norm(self.first(pixels))
        if self.noisy:
            hidden = nn.functional.dropout(hidden, 0.3) + random.random() + np.random.rand()
        output = self.last(hidden).squeeze(1)
        return {"error": (output - pixels.mean(1)).square().mean(), "size": 0.01 * output.square().mean()}

    def after_step(self, step: int, steps: int) -> None:
        self.queue[step % 4] = self.first.bias.detach() + torch.rand(5)
        if step + 1 == self.die_after:
            os.kill(os.getpid(), self.by)

    def meters(self) -> dict[str, float]:
        return {"queue": self.queue.mean().item()}

    def warnings(self) -> list[str]:
        return ["the queue is a queue"]


def batches(size: int, seed: int = 0, rank: int = 0, processes: int = 1):
    """Give batches of ``size`` images over all processes: a pure function of the number of the batch."""

    def stream(start: int) -> Iterator[ViewBatch]:
        number = start
        while True:
            indices = range(number * size, (number + 1) * size)[rank * size // processes :][: size // processes]
            images = [_image(derive_seed(seed, index)) for index in indices]
            yield ViewBatch(views=[torch.stack(images)], ids=list(indices), files=[f"{index}.jpg" for index in indices])
            number += 1

    return stream


def _image(seed: int) -> Tensor:
    return torch.randint(0, 256, (3, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def toy_run(folder: Path, task: Task, steps: int = 12, batch_size: int = 8, optimizer: str = "sgd", **settings):
    """Train with checkpoints every 4 steps and rows every 3, which do not fall together."""
    build = {"sgd": sgd, "adamw": adamw}[optimizer]
    checkpoints = Checkpoints(folder / "checkpoints", "toy", every=settings.pop("checkpoint_every", 4))
    return train(
        task,
        batches(batch_size, rank=distributed.rank(), processes=distributed.world_size()),
        build(task, lr=LR),
        cosine(12, warmup_steps=3),
        Log(folder, steps, settings.pop("console", Console(file=io.StringIO())), every=3),
        checkpoints,
        torch.device("cpu"),
        settings.pop("evaluate", None),
        save_best=settings.pop("save_best", None),
        steps=steps,
        **settings,
    )


def main() -> None:
    """Run as a program: ``toy.py FOLDER [--die-after STEP] [--by SIGNAL] [--plain]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--by", type=int, default=signal.SIGKILL)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    distributed.start(torch.device("cpu"))
    task = Toy(not options.plain, options.die_after, options.by)
    try:
        if options.plain:
            toy_run(options.folder, task, steps=3, accumulate=2, clip_norm=1.0)
        else:
            toy_run(options.folder, task, accumulate=2, ema_decay=0.9)
    except Interrupted as stop:
        raise SystemExit(128 + stop.signal) from None
    torch.save(task.state_dict(), options.folder / f"weights_{distributed.rank()}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()

"""The loop: batches in, a trained task out."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from shutil import which
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from visionlab import distributed
from visionlab.checks import check_above, check_at_least, check_in
from visionlab.seeding import derive_seed
from visionlab.settings import Settings, flat_settings
from visionlab.train.checkpoint import Best, Checkpoints, Stateful
from visionlab.train.ema import WeightAverage
from visionlab.train.guard import Guard, Interrupted, NonFiniteError
from visionlab.train.log import Log
from visionlab.train.schedule import Schedule
from visionlab.train.task import Task

COMPILERS = (os.environ.get("CXX") or "c++", "g++", "clang++", "cl")  # of which torch.compile takes one
LOOK_EVERY = {"cpu": 1}  # steps between two looks at the losses; elsewhere 10, because a look waits for the device
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """How long and how a task is trained.

    Args:
        steps: updates in the run.
        precision: bf16 and fp16 compute forward passes under autocast; fp16 with a loss scaler.
        accumulate: micro-batches in an update; each is one batch of ``batches``.
        clip_norm: the largest L2 norm of the gradient over all parameters.
        channels_last: lay out convolution weights and images channels last.
        compile: let ``torch.compile`` make the forward and backward passes of backbone and neck. The first step, and
            the first of another size of images, takes longer; rounding differs.
        ema_decay: keep an exponential moving average of the weights, which is what gets evaluated and kept.
        evaluate_every: updates between two evaluations; without it there is one, at the end.
    """

    steps: int
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    clip_norm: float | None = None
    channels_last: bool = False
    compile: bool = False
    ema_decay: float | None = None
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, accumulate=self.accumulate)
        check_above(0, clip_norm=self.clip_norm)
        check_in("(0, 1)", ema_decay=self.ema_decay)
        if self.evaluate_every is not None and not 0 < self.evaluate_every <= self.steps:
            raise ValueError(f"evaluate_every: expected 1 to steps, {self.steps}, got {self.evaluate_every}")

    def on(self, device: str) -> Training:
        """Return this training, which a kind of device, for example ``cpu``, must be able to do."""
        if self.precision == "fp16" and device == "cpu":
            raise ValueError("precision: expected fp32 or bf16 on the CPU, got fp16")
        if self.compile and device == "cpu" and not any(map(which, COMPILERS)):
            raise ValueError("compile: torch.compile needs a C++ compiler for the CPU, found none")
        return self


@flat_settings
def train(
    task: Task,
    batches: Callable[[int], Iterator[Any]],
    optimizer: Optimizer,
    schedule: Schedule,
    log: Log,
    checkpoints: Checkpoints,
    device: torch.device,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    best_metric: str = "AP",
    save_best: Callable[[int], None] | None = None,
    seed: int = 0,
    *,
    training: Training,
) -> Best:
    """Train a task from where its checkpoints stand to the last step.

    A step is one update of the weights from ``accumulate`` micro-batches: step s, from 0, takes the micro-batches
    ``s * accumulate`` to ``(s + 1) * accumulate - 1`` and minimizes the mean of their losses. Rows, checkpoints and
    evaluations are numbered by updates done. Torch's, numpy's and Python's random generators are seeded anew for each
    micro-batch from (seed, step, micro-batch, rank), so their state never has to be stored.

    Afterwards the task holds the averaged weights where ``ema_decay`` is given, else the last ones.

    Args:
        task: what learns.
        batches: gives this process's micro-batches, without end, from a micro-batch number on.
        optimizer: of the task's parameters.
        schedule: the factor on the learning rate of each update.
        log: where rows go.
        checkpoints: where the run's state goes, and comes from.
        device: where to compute.
        evaluate: measures the task, which holds averaged weights if there are any, after so many updates; every
            process calls it, the main process's numbers count.
        best_metric: the number of ``evaluate`` that decides which weights are best, higher is better.
        save_best: called by the main process whenever an evaluation was the best so far, with the same weights.
        seed: of the run.
        training: how long and how, see ``Training``.

    Returns:
        The best evaluation, if there is a ``save_best`` to look for it.

    Raises:
        NonFiniteError: a loss or the gradient was not finite; under fp16 the gradient may be, the scaler skips it.
        Interrupted: SIGINT or SIGTERM came, and a checkpoint was written.
    """
    steps, accumulate, precision = training.on(device.type).steps, training.accumulate, training.precision
    if evaluate is None and (training.evaluate_every is not None or save_best is not None):
        raise ValueError("evaluate_every and save_best have no effect without an evaluation")

    # ---------------------------------------------------------------------------------------- where the run stands
    task.to(device)
    if training.channels_last:
        task.to(memory_format=torch.channels_last)
    if training.compile:
        _compile(task)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    average = WeightAverage(task, training.ema_decay) if training.ema_decay is not None else None
    best = Best(best_metric)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    parts: dict[str, Stateful] = {"task": task, "optimizer": optimizer, "scaler": scaler, "best": best, "log": log}
    if average:
        parts["average"] = average
    start, notes = checkpoints.restore(parts)
    replica = distributed.replicate(task, device)
    replica.train()

    with log.opened(start), Guard(LOOK_EVERY.get(device.type, 10)) as guard:
        for note in notes:
            log.warn(note)
        stream = batches(start * accumulate)
        names: list[str] = []
        for step in range(start, steps):
            done = step + 1

            # -------------------------------------------------------------------------------------------- gradients
            collected: list[Tensor] = []
            files: list[str] = []
            images = 0
            for micro in range(accumulate):
                with log.waiting():
                    batch = _next(stream, done).to(device, non_blocking=True, channels_last=training.channels_last)
                _seed_generators(derive_seed(seed, "step", step, micro, distributed.rank()))
                with nullcontext() if micro == accumulate - 1 else distributed.unsynced(replica):
                    with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                        losses = replica(batch)
                    names = names or list(losses)
                    collected.append(_values(losses, names))
                    scaler.scale(sum(losses.values()) / accumulate).backward()
                files += batch.files
                images += len(batch) * distributed.world_size()

            # ----------------------------------------------------------------------------------------------- update
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step)
            scaler.unscale_(optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if training.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, training.clip_norm, norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            task.after_step(step, steps)
            if average:
                average.update(step)

            # ----------------------------------------------------------------------------------------- go on, stop, log
            measure = evaluate if _due(done, training.evaluate_every, steps) else None
            saves = _due(done, checkpoints.every, steps)
            values = torch.cat([torch.stack(collected).mean(0), norm.float().to(device).reshape(1)])
            guard.watch(done, names if scaler.is_enabled() else [*names, "gradient"], values, files)
            signal = None
            if measure or saves or log.due(done) or guard.due(done):
                try:
                    signal = guard.settle()
                except NonFiniteError as error:
                    log.fault(str(error), error.files)
                    raise
            log.add(done, values, images)
            if log.due(done):
                log.row(names, lr=optimizer.defaults["lr"] * schedule(step), meters=task.meters())
                for message in task.warnings():
                    log.warn(message)

            # ------------------------------------------------------------------------------------- evaluate and save
            with log.paused():
                if measure:
                    with average.applied() if average else nullcontext():
                        distributed.share_buffers(task)
                        metrics = distributed.broadcast(measure(done))
                        log.evaluation(metrics)
                        if save_best and best.improves(done, metrics) and distributed.is_main():
                            save_best(done)
                    replica.train()
                if saves or signal:
                    distributed.share_buffers(task)
                    checkpoints.save(done, parts)
            if signal:
                raise Interrupted(signal, done)

    if average:
        average.copy_to_module()
    return best


def _due(done: int, every: int | None, steps: int) -> bool:
    return done == steps or (every is not None and done % every == 0)


def _compile(task: Task) -> None:
    """Compile parts of a task in place, so that their names in its ``state_dict`` stay."""
    parts = task.compilable()
    if not parts:
        raise ValueError("compile: would have no effect, this task has no part that can be compiled")
    for part in parts:
        part.compile()


def _next(stream: Iterator[Any], step: int) -> Any:
    for batch in stream:
        return batch
    raise ValueError(f"the batches ended in step {step}; training needs batches without end")


def _values(losses: dict[str, Tensor], names: list[str]) -> Tensor:
    """Return the losses as one ``(losses,)`` float32 tensor without gradient, in the order of ``names``."""
    if set(losses) != set(names) or not names or any(loss.ndim for loss in losses.values()):
        found = {name: tuple(loss.shape) for name, loss in losses.items()}
        raise ValueError(f"a task must return the same scalar losses at every call: expected {names}, got {found}")
    return torch.stack([losses[name].detach().float() for name in names])


def _seed_generators(seed: int) -> None:
    """Seed the global random generators of this process, so that their state never has to be stored."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

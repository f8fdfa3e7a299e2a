"""Time pretraining: making the views alone, the model's step alone, and both together; SimCLR's step beside lightly's.

    python benchmarks/benchmark_pretrain.py DIR              # SimCLR at 96 pixels and jigsaw, ResNet-18, on a folder
    python benchmarks/benchmark_pretrain.py DIR --workers 4  # processes that make views; the model has the other cores
    python benchmarks/benchmark_pretrain.py DIR --configs configs/compare/cifar/*.yaml  # methods beside supervised

Together the two should be as fast as the slower of them alone; what views cost is said step by step. With lightly
installed, a step of its SimCLR, its head and its loss, is timed in turn with ours, on the same encoder, views and
optimizer. With configs, only their methods are timed, each in turn with supervised training of the encoder that most of
them have.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from operators.measure import interleave
from operators.report import seconds, table
from torch import nn

from visionlab.data.folder import ImageFolder
from visionlab.data.loader import TrainLoader
from visionlab.data.samples import ViewSamples
from visionlab.data.views import Views
from visionlab.models.backbone import Backbone
from visionlab.pretext import PRETEXTS, Pretext
from visionlab.structures import ViewBatch
from visionlab.studies.protocol import base_run, load_run
from visionlab.tasks.classify import ClassifyTask
from visionlab.tasks.pretrain import PretrainTask
from visionlab.train.task import Task

METHODS: dict[str, dict[str, Any]] = {"simclr": {"image_size": 96}, "jigsaw": {"num_permutations": 1000}}


def main() -> int:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="a folder of images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=max(1, cores // 2), help="processes that make views")
    parser.add_argument("--batches", type=int, default=10, help="timed of each kind, in each of three rounds")
    parser.add_argument(
        "--configs", type=Path, nargs="+", help="of pretraining runs: their steps beside supervised ones"
    )
    parser.add_argument("--image-size", type=int, default=32, help="of supervised training beside configs, in pixels")
    options = parser.parse_args()
    if options.configs:
        torch.set_num_threads(1)
        compare_with_supervised(options)
        return 0
    torch.set_num_threads(max(1, cores - options.workers))
    rows = [time_loader_and_model(name, settings, options) for name, settings in METHODS.items()]
    title = f"images a second: {options.workers} processes make views, the model has {torch.get_num_threads()} threads"
    table(["ResNet-18", "views alone", "model alone", "together", "of the slower"], rows, title)
    time_steps_of_views(options)
    compare_with_lightly(options)
    return 0


def time_loader_and_model(name: str, settings: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return a row: how many images a second views, model and both get done."""
    method = build(name, settings)
    dataset = ImageFolder(root=options.root)
    loader = TrainLoader(ViewSamples(dataset, method.views), batch_size=options.batch_size, workers=options.workers)
    batches = loader.batches()
    step = trainer(PretrainTask(method))
    one = next(batches)
    step(one)
    speeds: dict[str, list[float]] = {"views": [], "model": [], "both": []}
    for _ in range(3):
        speeds["model"].append(rate(lambda: step(one), options))
        drain(batches, options)
        speeds["views"].append(rate(lambda: next(batches), options))
        speeds["both"].append(rate(lambda: step(next(batches)), options))
    views, model, both = (median(speeds[kind]) for kind in ("views", "model", "both"))
    return [name, f"{views:.0f}", f"{model:.1f}", f"{both:.1f}", f"{100 * both / min(views, model):.0f} %"]


def build(name: str, settings: dict[str, Any]) -> Pretext:
    torch.manual_seed(0)
    return PRETEXTS[name](Backbone(name="resnet18"), **settings).train().to(memory_format=torch.channels_last)


def trainer(task: Task) -> Callable[[ViewBatch], None]:
    """Return one step of training."""
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9)

    def step(batch: ViewBatch) -> None:
        optimizer.zero_grad()
        torch.stack(list(task(batch).values())).sum().backward()
        optimizer.step()
        task.after_step(0, 1)

    return step


def rate(call: Callable[[], Any], options: argparse.Namespace) -> float:
    begin = time.perf_counter()
    for _ in range(options.batches):
        call()
    return options.batches * options.batch_size / (time.perf_counter() - begin)


def drain(batches: Iterator[ViewBatch], options: argparse.Namespace) -> None:
    """Take what was made ahead while the model ran."""
    for _ in itertools.islice(batches, 3 * options.workers):
        pass


def time_steps_of_views(options: argparse.Namespace) -> None:
    """Print what the two views of an image cost, step by step."""
    dataset, spent = ImageFolder(root=options.root), Counter[str]()
    [view, _] = build("simclr", METHODS["simclr"]).views.transforms
    transform, _ = view.crop.seeded(0)
    images = range(min(len(dataset), 20 * options.batches))
    for number in images:
        begin = time.perf_counter()
        image = dataset.load(number)
        spent["reading and decoding"] += time.perf_counter() - begin
        for _ in range(2):
            view = image
            for step in transform.transforms:
                begin = time.perf_counter()
                view = step(image=view)["image"]
                spent[type(step).__name__] += time.perf_counter() - begin
    rows = [[name, f"{1e3 * taken / len(images):.2f}"] for name, taken in spent.items()]
    table(["both views of an image", "ms"], rows, "SimCLR, 96 pixels, one process")


def compare_with_lightly(options: argparse.Namespace) -> None:
    """Print the time of a step of SimCLR here and of lightly's, in turn."""
    try:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
    except ImportError as error:
        print(f"lightly: not measured, {error}")
        return
    ours = build("simclr", METHODS["simclr"])
    theirs = nn.ModuleDict({
        "encoder": copy.deepcopy(ours.encoder),
        "projection": SimCLRProjectionHead(ours.encoder.num_features, 2048, 128),
    })  # fmt: skip
    loss, optimizer = NTXentLoss(temperature=0.1), torch.optim.SGD(theirs.parameters(), lr=1e-3, momentum=0.9)
    views = ViewSamples(ImageFolder(root=options.root), ours.views)
    batch = next(TrainLoader(views, batch_size=options.batch_size, workers=0).batches())
    step = trainer(PretrainTask(ours))

    def step_of_lightly() -> None:
        optimizer.zero_grad()
        encoder, projection = theirs["encoder"], theirs["projection"]
        first, second = (projection(encoder.pool(encoder.normalize(view))) for view in batch.views)
        loss(first, second).backward()
        optimizer.step()

    times = interleave({"ours": lambda: step(batch), "theirs": step_of_lightly}, "cpu", 60, options.batches)
    ratio = times["theirs"]["median"] / times["ours"]["median"]
    row = ["SimCLR, ResNet-18, 96 pixels", seconds(times["ours"]), seconds(times["theirs"]), f"{ratio:.2f}x"]
    table(["one step", "ms ± IQR/2", "lightly", "faster"], [row], f"{options.batch_size} images, 2 views each")


def compare_with_supervised(options: argparse.Namespace) -> None:
    """Print the time of a step of each config's method over that of one supervised step, one thread.

    Supervised training has the encoder that most configs have, as in `visionlab compare`.
    """
    runs = {path.stem: load_run(path, "pretrain", [f"data.root={options.root}"]) for path in options.configs}
    dataset, base = ImageFolder(root=options.root), base_run(runs)

    def step_of(task: Task, views: Any, batch_size: int) -> Callable[[], None]:
        batch = next(TrainLoader(ViewSamples(dataset, views), batch_size=batch_size, workers=0).batches())
        return functools.partial(trainer(task.train().to(memory_format=torch.channels_last)), batch)

    classify = ClassifyTask(base.backbone.build(), [0] * len(dataset), classes=10)
    supervised = step_of(classify, Views.crops(image_size=options.image_size), base.loader.batch_size)
    rows = []
    for name, run in runs.items():
        torch.manual_seed(0)
        method = run.pretext.build(run.backbone.build())
        method.prepare(len(dataset), 1)
        ours = step_of(PretrainTask(method), method.views, run.loader.batch_size)
        times = interleave({"ours": ours, "supervised": supervised}, "cpu", 10, options.batches)
        ratio = times["ours"]["median"] / times["supervised"]["median"]
        rows.append([name, seconds(times["ours"]), seconds(times["supervised"]), f"{ratio:.1f}x"])
    title = f"one step of {base.loader.batch_size} images, supervised ones of {options.image_size} pixels, one thread"
    table(["method", "ms ± IQR/2", "supervised", "cost"], rows, title)


if __name__ == "__main__":
    raise SystemExit(main())

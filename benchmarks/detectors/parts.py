"""Where a detector's time goes: its parts are watched while it runs."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from detectors.pair import Pair, as_jpeg
from visionlab.data.images import read_image
from visionlab.data.samples import collate_images
from visionlab.data.transforms import EvaluationResize
from visionlab.models import rpn

PARTS = ("data", "normalize", "backbone", "neck", "rpn", "pool", "head", "NMS", "loss", "optimizer", "other")
BACKWARD = ("head and its loss, backward", "pool and rpn, backward", "neck, backward", "backbone, backward")


class Watch:
    """Adds up the seconds of parts; those of a part inside another count for the inner one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside for a part."""
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts for a part."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return function(*arguments, **keywords)

        return timed

    def _turn(self) -> None:
        now = self.clock()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def folded(pair: Pair) -> tuple[nn.Module, nn.Module]:
    """Return the backbone and the neck that our detector runs in its mode."""
    ours = pair.ours
    folding: Any = ours._training_folding if ours.training else ours._folding
    if folding._copy is None:
        ours(pair.batch)
    body, neck = folding._copy
    return body, neck


@contextmanager
def watched(pair: Pair, clock: Callable[[], float]) -> Iterator[Watch]:
    """Watch the parts of our detector inside the ``with`` block."""
    ours, watch = pair.ours, Watch(clock)
    body, neck = folded(pair)
    places: list[tuple[Any, str, str]] = [
        (ours.backbone, "normalize", "normalize"),
        (body, "forward", "backbone"),
        (neck, "forward", "neck"),
        (ours.rpn, "predict", "rpn"),
        (ours.rpn, "propose", "rpn"),
        (rpn, "batched_nms", "NMS"),
        (ours.rpn, "losses", "loss"),
        (ours.head, "losses", "loss"),
        (ours.head, "hidden", "head"),
        (ours.head, "predict", "head"),
        (ours.head.pool, "forward", "pool"),
        (ours.head, "suppress", "NMS"),
    ]
    with ExitStack() as stack:
        for place, name, part in places:
            stack.enter_context(patch.object(place, name, watch.around(part, getattr(place, name))))
        yield watch


def time_inference(pair: Pair, clock: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of each part of a detection, reading the image included."""
    with watched(pair, clock) as watch:
        _read(pair, watch)
        with watch.part("other"):
            pair.detect_ours()
    return dict(watch.seconds)


def time_training(pair: Pair, clock: Callable[[], float], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the seconds of each part of a step; those of the backward pass by the gradients that arrive."""
    arrivals: dict[str, float] = {}

    def arrived(name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            arrivals.setdefault(name, clock())

        return hook

    def listen(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, answer: Any) -> None:
            for tensor in answer if isinstance(answer, list) else [answer]:
                tensor.register_hook(arrived(name))

        return hook

    ours = pair.ours
    with watched(pair, clock) as watch:
        body, neck = folded(pair)
        places = {"pooled": ours.head.pool, "pyramid": neck, "levels": body}
        hooks = [module.register_forward_hook(listen(name)) for name, module in places.items()]
        _read(pair, watch)
        with watch.part("other"):
            loss = sum(ours.losses(pair.batch).values())
        for hook in hooks:
            hook.remove()
        begin = clock()
        loss.backward()
        times = [begin, *(arrivals[name] for name in ("pooled", "pyramid", "levels")), clock()]
        watch.seconds.update(dict(zip(BACKWARD, (end - start for start, end in pairwise(times)), strict=True)))
        with watch.part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    return dict(watch.seconds)


def _read(pair: Pair, watch: Watch) -> None:
    """Read, resize and collate an image as a prediction does."""
    height, width = pair.batch.sizes[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.jpg"
        file.write_bytes(as_jpeg((height, width)))
        resize = EvaluationResize(short_side=min(height, width), max_size=max(height, width))
        with watch.part("data"):
            images = [resize.apply_to_image(read_image(str(file))) for _ in pair.images]
            collate_images(images, divisor=32)


def clocks(name: str) -> Callable[[], float]:
    """Return the clock of a name: ``wall``, or ``process`` for the processor time of all threads."""
    return time.process_time if name == "process" else time.perf_counter

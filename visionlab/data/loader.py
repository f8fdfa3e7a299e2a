"""Batches, read ahead by worker processes; none of them depends on how many workers or processes there are."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from visionlab import distributed
from visionlab.checks import check_at_least
from visionlab.data.augmentation import albumentations
from visionlab.data.images import ImageError, file_problem
from visionlab.data.problems import Problem
from visionlab.data.samples import Samples
from visionlab.data.sampling import Key, Sampler, shard
from visionlab.data.transport import Fetched
from visionlab.seeding import derive_seed

log = logging.getLogger(__name__)

# More unreadable images in a row mean that the disk is gone or the path is wrong.
MAX_UNREADABLE = 100

# Seconds that a worker goes on for after it was told to terminate.
GRACE = 5


class TrainLoader:
    """Yields training batches without end.

    Each sample is a function of the run's seed, the epoch and the image alone. In place of an image that cannot be read
    comes the next one that can; the fault is logged once and kept in ``problems``.

    Args:
        samples: the images and what is made of them.
        seed: the run's seed.
        pin_memory: whether batches are to lie in page-locked memory, as copies to a GPU like it.
        batch_size: images per batch over all processes.
        workers: processes that read ahead, for each process of the run; 0 reads in the process itself.

    Raises:
        ValueError: there is no image, or the batch cannot be shared out evenly over the processes.
    """

    def __init__(
        self, samples: Samples, seed: int = 0, pin_memory: bool = False, *, batch_size: int, workers: int = 2
    ) -> None:
        self.sampler = Sampler(
            len(samples.files),
            seed=seed,
            batch_size=batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            groups=samples.groups,
        )
        self.problems: list[Problem] = []
        self._fetcher = _Fetcher(samples, seed, replace=True)
        check_at_least(0, workers=workers)
        self._workers, self._pin_memory = workers, pin_memory

    def batches(self, start_step: int = 0) -> Iterator[Any]:
        """Yield this process's batches from any step on, for ever.

        Raises:
            ValueError: under the policy ``fail`` an image cannot be read; or too many in a row cannot.
        """
        if self._workers:
            albumentations()  # imported once, before the workers are forked, instead of in each
        keys = self.sampler.batches(start_step)
        return _read(self._fetcher, keys, self._workers, self._pin_memory, self.problems)


class EvalLoader:
    """Gives each image once, over all processes.

    An image that cannot be read is left out; the fault is logged once and kept in ``problems``.

    Args:
        samples: the images and what is made of them.
        pin_memory: whether batches are to lie in page-locked memory, as copies to a GPU like it.
        batch_size: images per batch over all processes.
        workers: processes that read ahead, for each process of the run; 0 reads in the process itself.

    Raises:
        ValueError: the batch cannot be shared out evenly over the processes.
    """

    def __init__(self, samples: Samples, pin_memory: bool = False, *, batch_size: int, workers: int = 2) -> None:
        rank, world_size = distributed.rank(), distributed.world_size()
        self._indices = shard(len(samples.files), batch_size=batch_size, rank=rank, world_size=world_size)
        self.problems: list[Problem] = []
        self._fetcher = _Fetcher(samples, 0, replace=False)
        check_at_least(0, workers=workers)
        self._workers, self._pin_memory = workers, pin_memory

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Any]:
        keys = ([(0, index) for index in indices] for indices in self._indices)
        return _read(self._fetcher, keys, self._workers, self._pin_memory, self.problems)


class _Fetcher:
    """Makes batches of keys; lives in the workers."""

    def __init__(self, samples: Samples, seed: int, replace: bool) -> None:
        self.samples, self.seed, self.replace = samples, seed, replace

    def __getitems__(self, keys: list[Key]) -> Fetched:
        problems: list[Problem] = []
        found: list[tuple[Any, int, int]] = []
        try:
            for epoch, index in keys:
                sample = self._load(index, derive_seed(self.seed, epoch, index), problems)
                found += [sample] if sample else []
        except ImageError as error:  # sent as a value, since a worker's exceptions arrive wrapped in a traceback
            return Fetched(error=ValueError(str(error)))
        if not found:
            return Fetched(None, problems)
        samples, indices, seeds = (list(column) for column in zip(*found, strict=True))
        return Fetched(self.samples.collate(samples, indices, seeds), problems)

    def _load(self, index: int, seed: int, problems: list[Problem]) -> tuple[Any, int, int] | None:
        files = self.samples.files
        candidates = [(index + step) % len(files) for step in range(min(len(files), MAX_UNREADABLE))]
        for candidate in candidates if self.replace else [index]:
            try:
                return self.samples.load(candidate, seed), candidate, seed
            except ImageError as error:
                if self.samples.policy == "fail":
                    raise
                action = "the next image takes its place" if self.replace else "left out"
                problems.append(file_problem(files[candidate], error, action=action))
        if self.replace:
            first = problems[-len(candidates)]
            raise ImageError(f"{len(candidates)} images in a row cannot be read, the first: {first}")
        return None


def _read(
    fetcher: _Fetcher, keys: Iterable[list[Key]], workers: int, pin_memory: bool, problems: list[Problem]
) -> Iterator[Any]:
    loader: DataLoader = DataLoader(
        fetcher,  # type: ignore[arg-type]
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # otherwise each loader would draw a number from the global generator
    )
    named = {problem.file for problem in problems}
    for fetched in loader:
        if fetched.error is not None:
            raise fetched.error
        for problem in fetched.problems:
            if problem.file not in named:
                named.add(problem.file)
                problems.append(problem)
                _warn(problem)
        if fetched.batch is not None:
            yield fetched.batch


@cache
def _warn(problem: Problem) -> None:
    """Log a fault once in a process, though each evaluation has a loader of its own."""
    log.warning("%s", problem)


def _identity(fetched: Any) -> Fetched:
    return fetched


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    # The main process handles signals that reach all processes: it may need one more batch to stop in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))

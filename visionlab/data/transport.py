"""How a batch travels from the worker that made it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionlab.data.problems import Problem

SMALL_TENSOR = 1 << 16  # bytes


@dataclass
class Fetched:
    """What comes back from a worker: a batch, what was wrong with its images, or what stops the run."""

    batch: Any = None
    problems: Sequence[Problem] = ()
    error: ValueError | None = None

    def pin_memory(self) -> Fetched:
        batch = None if self.batch is None else self.batch.pin_memory()
        return Fetched(batch, self.problems, self.error)

    def __reduce__(self) -> tuple:
        # Each tensor that leaves a worker costs a file descriptor and a round of messages, about 0.4 ms: pixels are
        # worth that, the targets of a batch (three tensors per image) travel as bytes.
        file = io.BytesIO()
        packer = _Packer(file)
        packer.dump((self.batch, self.problems, self.error))
        return _unpack, (file.getvalue(), packer.large)


class _Packer(pickle.Pickler):
    """Pickles small tensors as arrays and puts large ones aside."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.large: list[Tensor] = []

    def persistent_id(self, value: Any) -> np.ndarray | int | None:
        if not isinstance(value, Tensor):
            return None
        if value.nbytes < SMALL_TENSOR:
            return value.numpy()
        self.large.append(value)
        return len(self.large) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, large: list[Tensor]) -> None:
        super().__init__(file)
        self.large = large

    def persistent_load(self, key: np.ndarray | int) -> Tensor:
        return self.large[key] if isinstance(key, int) else torch.from_numpy(key)


def _unpack(content: bytes, large: list[Tensor]) -> Fetched:
    return Fetched(*_Unpacker(io.BytesIO(content), large).load())

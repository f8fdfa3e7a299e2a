"""Arguments of one fuzz case, drawn from its own seed: tame, hostile or wild."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

HOSTILE = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 1e4, -1e4, 1e-42, -0.0, -1.0]
HOSTILE_NUMBERS = [float("nan"), float("inf"), -1.0, 0.0, 1e30, -1e30, 1e-30, 2.0]
DTYPES = [torch.float32] * 4 + [torch.float64] * 2 + [torch.float16, torch.bfloat16]


class Draw:
    """Everything that one case needs, drawn from its own seed. Python's generator: NumPy's takes longer than a case."""

    def __init__(self, op: str, seed: int, number: int, device: str = "cpu") -> None:
        self.random = random.Random(f"{op} {seed} {number}")
        self.device = device
        self.kind = self.choose(["tame", "tame", "hostile", "hostile", "wild"])
        self.dtype: torch.dtype = self.choose(DTYPES)
        self.leaves: list[Tensor] = []

    def choose(self, options: list) -> Any:
        return self.random.choice(options)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def size(self, most: int, least: int = 0) -> int:
        """A size of ``least`` to ``most``; a wild case may say anything."""
        if self.kind == "wild" and self.chance(0.04):
            return self.choose([-3, -1, 0])
        return self.random.randint(least, most)

    def number(self, low: float, high: float) -> float:
        if self.kind == "wild" and self.chance(0.1):
            return self.choose(HOSTILE_NUMBERS)
        return self.random.uniform(low, high)

    def values(self, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        bits = np.frombuffer(self.random.randbytes(4 * math.prod(shape)), np.uint32)
        return (bits * ((high - low) / 2**32) + low).reshape(shape)

    def tensor(self, *shape: int, grad: bool = True, low: float = -2.0, high: float = 2.0) -> Tensor:
        """Values from ``low`` to ``high``, and hostile ones unless the case is tame."""
        shape = tuple(max(size, 0) for size in shape)
        if self.kind == "wild" and self.chance(0.04):
            shape = self._wrong(shape)
        values = self.values(shape, low, high)
        if self.kind != "tame" and values.size and self.chance(0.5):
            for _ in range(self.random.randint(1, 3)):
                values.flat[self.random.randrange(values.size)] = self.choose(HOSTILE)
        return self.finish(values, grad)

    def finish(self, values: np.ndarray, grad: bool = False) -> Tensor:
        """A tensor of these values in the dtype of the case, with strides of its own."""
        dtype = self.dtype
        if self.kind == "wild" and self.chance(0.02):
            dtype = self.choose([torch.int64, torch.float64, torch.bool, torch.complex64])
        tensor = self._strided(torch.from_numpy(values).to(device=self.device, dtype=dtype))
        if grad and tensor.is_floating_point() and self.chance(0.7):
            self.leaves.append(tensor.requires_grad_())
        return tensor

    def boxes(self, count: int, height: int, width: int) -> np.ndarray:
        """``(count, 4)`` around a map of that size; unless tame, some are turned over or have hostile corners."""
        count = max(count, 0)
        corners = self.values((count, 2, 2), -0.3, 1.2) * (width, height)
        corners.sort(axis=1)
        boxes = corners.reshape(count, 4)
        if self.chance(0.3):
            boxes = boxes.round()
        if self.kind != "tame" and count and self.chance(0.6):
            for _ in range(self.random.randint(1, 3)):
                row = self.random.randrange(count)
                if self.chance(0.3):
                    boxes[row] = boxes[row, [2, 3, 0, 1]]
                boxes[row, self.random.randrange(4)] = self.choose(HOSTILE)
        return boxes

    def plain_boxes(self, count: int, height: int = 20, width: int = 30, grad: bool = False) -> Tensor:
        boxes = self.boxes(count, height, width)
        return self.finish(boxes[:, :3] if self.kind == "wild" and self.chance(0.02) else boxes, grad)

    def rois(self, count: int, batch: int, height: int, width: int) -> Tensor | list[Tensor]:
        """Boxes with the index of their image, or a list with the boxes of each image."""
        if self.chance(0.2):
            return [self.plain_boxes(self.size(3), height, width) for _ in range(batch)]
        boxes = self.boxes(count if batch else 0, height, width)
        index = np.array([float(self.random.randrange(max(batch, 1))) for _ in boxes]).reshape(-1, 1)
        if self.kind != "tame" and len(boxes) and self.chance(0.15):
            index[self.random.randrange(len(boxes))] = self.choose([-1, batch, 1e9, 0.5, np.nan, np.inf])
        return self.finish(np.concatenate([index, boxes], 1))

    def _wrong(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        turn = self.random.randrange(3)
        if turn == 0:
            return shape[1:]
        if turn == 1:
            return (*shape, 2)
        place = self.random.randrange(len(shape))
        return tuple(size + (dim == place) for dim, size in enumerate(shape))

    def _strided(self, tensor: Tensor) -> Tensor:
        """The same values, mostly, with other strides: channels_last, permuted, sliced, expanded, shifted."""
        turn = self.random.randrange(8)
        if turn <= 1 and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        if turn == 2 and tensor.dim() > 1:
            order = self.random.sample(range(tensor.dim()), tensor.dim())
            return tensor.permute(order).contiguous().permute(np.argsort(order).tolist())
        if turn == 3 and tensor.dim():
            dim = self.random.randrange(tensor.dim())
            return torch.stack([tensor, tensor], dim + 1).select(dim + 1, 0)
        if turn == 4 and tensor.dim() == 4 and tensor.shape[0] > 1:
            return tensor[:1].expand_as(tensor)
        if turn == 5 and tensor.numel():
            return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
        return tensor

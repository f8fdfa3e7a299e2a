"""What methods remember of images: queues of keys and memory banks.

It is in the ``state_dict``, so a checkpoint has it. What a step adds is pending until ``Pretext.after_step``, where all
processes take in what all have added, in the order of ranks: the memory of N processes is that of one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab import distributed
from visionlab.checks import check_at_least, check_in


class Queue(nn.Module):
    """The newest keys of all processes; at first, directions drawn at random.

    Args:
        size: how many keys it holds.
        width: how long a key is.
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, width: int):
        super().__init__()
        check_at_least(1, queue_size=size)
        self.register_buffer("keys", F.normalize(torch.randn(size, width)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._pending: list[Tensor] = []

    def enqueue(self, keys: Tensor) -> None:
        """Keep ``(N, width)`` keys of this process for the next ``update``; N is equal on all processes."""
        self._pending.append(keys.detach())

    @torch.no_grad()
    def update(self) -> None:
        """Replace the oldest keys by those that all processes have enqueued; all must call it together."""
        for own in self._pending:
            keys = distributed.gather(own)[-len(self.keys) :].to(self.keys.dtype)
            places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.keys)
            self.keys[places] = keys
            self.place.add_(len(keys)).remainder_(len(self.keys))
        self._pending = []


class MemoryBank(nn.Module):
    """One direction for each image of the dataset, moved towards what the network last said of that image.

    Args:
        width: how long a direction is.
        momentum: the share of the old direction that stays at an update, in [0, 1].

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018,
    arXiv:1805.01978, section 3.
    """

    rows: Tensor

    def __init__(self, width: int, momentum: float):
        super().__init__()
        check_in("[0, 1]", bank_momentum=momentum)
        self.width, self.momentum = width, momentum
        self.register_buffer("rows", torch.empty(0, width))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def prepare(self, images: int) -> None:
        """Make room for so many images, with directions drawn at random."""
        rows = F.normalize(torch.randn(images, self.width))
        self.rows = rows.to(self.rows.device, self.rows.dtype)

    def collect(self, ids: Tensor, rows: Tensor) -> None:
        """Keep ``(N, width)`` unit rows of the images ``(N,)`` for the next ``update``; N is equal on all processes."""
        self._pending.append((ids, rows.detach()))

    @torch.no_grad()
    def update(self) -> None:
        """Move the rows of all images that any process has collected; all must call it together.

        Of an image that came twice in a batch, the later counts.
        """
        for own_ids, own_rows in self._pending:
            ids, rows = distributed.gather(own_ids), distributed.gather(own_rows).to(self.rows.dtype)
            images, which = ids.unique(return_inverse=True)
            order = torch.arange(len(ids), device=ids.device)
            last = torch.zeros_like(images).scatter_reduce(0, which, order, "amax", include_self=False)
            moved = self.momentum * self.rows[images] + (1 - self.momentum) * rows[last]
            self.rows[images] = F.normalize(moved)
        self._pending = []

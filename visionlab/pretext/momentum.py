"""What methods remember besides the weights that gradients train: slow copies of networks, queues, memory banks.

All of it is in the ``state_dict``, so a checkpoint has it. What a step adds waits until ``Pretext.after_step``, where
all processes take in what all have added, in the order of ranks: the memory of N processes is that of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from visionlab import distributed
from visionlab.checks import check_at_least, check_in


class MomentumCopy(nn.ModuleList):
    """Copies of networks that follow them slowly and never see a gradient.

    The copies stay in evaluation mode and their running statistics follow like the weights do. What they say of an
    image then depends on that image alone, so batch statistics cannot give away which images came in one batch: without
    that, BatchNorm lets a network solve contrastive tasks by recognizing batches (He et al., section 3.3).

    Args:
        networks: what is copied.
        momentum: the share of the old weights that stays at each step, in [0, 1].

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, arXiv:1911.05722,
    equation 2; Cai et al., "Exponential Moving Average Normalization", 2021, arXiv:2101.08482, for the statistics.
    """

    def __init__(self, networks: Iterable[nn.Module], momentum: float):
        check_in("[0, 1]", momentum=momentum)
        # Copied as a whole, so that what networks share, their copies share too.
        super().__init__(deepcopy(nn.ModuleList(networks)).requires_grad_(False).eval())
        self.momentum = momentum

    def train(self, mode: bool = True) -> MomentumCopy:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def follow(self, networks: Iterable[nn.Module]) -> None:
        """Move a step towards the networks, which are those that were copied; counters are taken over as they are."""
        own, online = self.state_dict(), nn.ModuleList(networks).state_dict()
        moving = [name for name, value in own.items() if value.is_floating_point()]
        move = get_ema_multi_avg_fn(self.momentum)
        move([own[name] for name in moving], [online[name] for name in moving], None)
        for name in own.keys() - set(moving):
            own[name].copy_(online[name])


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
        self._waiting: list[Tensor] = []

    def put(self, keys: Tensor) -> None:
        """Let ``(N, width)`` keys of this process wait for ``advance``; N is equal on all processes."""
        self._waiting.append(keys.detach())

    @torch.no_grad()
    def advance(self) -> None:
        """Replace the oldest keys by those that all processes have put; all must call it together."""
        for own in self._waiting:
            keys = distributed.gather(own)[-len(self.keys) :].to(self.keys.dtype)
            places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.keys)
            self.keys[places] = keys
            self.place.add_(len(keys)).remainder_(len(self.keys))
        self._waiting = []


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
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def prepare(self, images: int) -> None:
        """Make room for so many images, with directions drawn at random."""
        rows = F.normalize(torch.randn(images, self.width))
        self.rows = rows.to(self.rows.device, self.rows.dtype)

    def put(self, ids: Tensor, rows: Tensor) -> None:
        """Let ``(N, width)`` unit rows of the images ``(N,)`` wait for ``advance``; N is equal on all processes."""
        self._waiting.append((ids, rows.detach()))

    @torch.no_grad()
    def advance(self) -> None:
        """Move the rows of all images that any process has put; all must call it together.

        Of an image that came twice in a batch, the later counts.
        """
        for own_ids, own_rows in self._waiting:
            ids, rows = distributed.gather(own_ids), distributed.gather(own_rows).to(self.rows.dtype)
            images, which = ids.unique(return_inverse=True)
            order = torch.arange(len(ids), device=ids.device)
            last = torch.zeros_like(images).scatter_reduce(0, which, order, "amax", include_self=False)
            moved = self.momentum * self.rows[images] + (1 - self.momentum) * rows[last]
            self.rows[images] = F.normalize(moved)
        self._waiting = []

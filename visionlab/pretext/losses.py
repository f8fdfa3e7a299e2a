"""Losses over embeddings. They know nothing of encoders, views or batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab import distributed


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the normalized temperature-scaled cross entropy of two views, and how often the positive is nearest.

    Row i of both views shows image i: they are each other's positive, and the views of all other images of all
    processes are negatives. The mean is over the rows of this process; averaged over processes, its gradient is that of
    one process with the whole batch.

    Args:
        first: ``(N, D)`` embeddings of the first view, not normalized; N equal on all processes.
        second: ``(N, D)`` embeddings of the second view.
        temperature: the softmax temperature, above 0.

    Raises:
        ValueError: there are no negatives, because the batch is a single image.

    Returns:
        The scalar loss, and the accuracy in ``[0, 1]`` of picking the positive among all candidates.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
    arXiv:2002.05709, equation 1.
    """
    n = len(first)
    anchors = torch.cat([first, second])
    anchors = F.normalize(anchors.to(torch.promote_types(anchors.dtype, torch.float32)))
    candidates = distributed.gather(anchors)
    if len(candidates) < 4:
        raise ValueError(f"batch_size: expected at least 2 images over all processes to contrast, got {n}")
    own = torch.arange(2 * n, device=anchors.device) + distributed.rank() * 2 * n
    positive = own.roll(n)
    logits = anchors @ candidates.T / temperature
    logits = logits.scatter(1, own[:, None], float("-inf"))
    accuracy = (logits.argmax(dim=1) == positive).float().mean()
    return F.cross_entropy(logits, positive), accuracy

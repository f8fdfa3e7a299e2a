"""Losses over embeddings. They know nothing of encoders, views or batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab import distributed
from visionlab.checks import check_above
from visionlab.precision import full_precision, upcast
from visionlab.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Temperature(Settings):
    """The softmax over similarities.

    Args:
        temperature: the softmax temperature, by which cosines are divided, above 0.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_above(0, temperature=self.temperature)


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
    anchors = F.normalize(upcast(anchors))
    candidates = distributed.gather(anchors)
    if len(candidates) < 4:
        raise ValueError(f"batch_size: expected at least 2 images over all processes to contrast, got {n}")
    own = torch.arange(2 * n, device=anchors.device) + distributed.rank() * 2 * n
    positive = own.roll(n)
    with full_precision(anchors):
        logits = anchors @ candidates.T / temperature
    logits = logits.scatter(1, own[:, None], float("-inf"))
    accuracy = (logits.argmax(dim=1) == positive).float().mean()
    return F.cross_entropy(logits, positive), accuracy


def contrast_with_queue(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of picking each query's key among it and a queue, and how often it is the nearest.

    Args:
        queries: ``(N, D)``, not normalized; N equal on all processes.
        keys: ``(N, D)``, not normalized, without gradient; row i is the positive of query i.
        queue: ``(K, D)`` unit rows, the negatives of every query.
        temperature: the softmax temperature, above 0.

    Returns:
        The scalar loss, and the accuracy in ``[0, 1]``.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, arXiv:1911.05722,
    equation 1.
    """
    with full_precision(queries):
        queries, keys = (F.normalize(upcast(rows)) for rows in (queries, keys))
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ queue.to(queries.dtype).T], dim=1) / temperature
        targets = logits.new_zeros(len(logits), dtype=torch.int64)
        return F.cross_entropy(logits, targets), (logits.argmax(dim=1) == 0).float().mean()


def vicreg_terms(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return the three terms of VICReg without their weights.

    Statistics are over the images of all processes. As in the authors' code, and other than in their equations, the
    invariance is a mean over dimensions too, and the variance is a mean over the two views.

    Args:
        first: ``(N, D)`` embeddings of the first view, N equal on all processes.
        second: ``(N, D)`` embeddings of the second view.

    Returns:
        ``invariance``: mean squared difference of the views. ``variance``: how far the standard deviations of the
        dimensions fall short of 1 on average; 1 when the embedding has collapsed. ``covariance``: the sum of squared
        covariances between dimensions, over D; it grows when dimensions repeat each other.

    Raises:
        ValueError: a single image, which has no variance.

    Source: Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2022,
    arXiv:2105.04906, equations 1 to 5.
    """
    with full_precision(first):
        first, second = distributed.gather(upcast(first)), distributed.gather(upcast(second))
        count, width = first.shape
        if count < 2:
            raise ValueError(f"batch_size: expected at least 2 images over all processes to vary, got {count}")
        centered = [rows - rows.mean(0) for rows in (first, second)]
        shortfalls = [F.relu(1 - (rows.var(0) + 1e-4).sqrt()).mean() for rows in (first, second)]
        covariances = [rows.T @ rows / (count - 1) for rows in centered]
        squares = [matrix.square().sum() - matrix.diagonal().square().sum() for matrix in covariances]
        return {
            "invariance": F.mse_loss(first, second),
            "variance": torch.stack(shortfalls).mean(),
            "covariance": torch.stack(squares).sum() / width,
        }


def noise_contrastive(data: Tensor, noise: Tensor, log_normalizer: Tensor, log_noise: float) -> Tensor:
    """Return the loss of telling data from noise by an unnormalized model, whose normalizer may be learned with it.

    A sample with score s is data with probability ``p / (p + m q)``, where ``p = exp(s) / Z`` and q is its probability
    under the noise distribution, of which there are m samples for each of the data.

    Args:
        data: ``(N,)`` scores, the log of the unnormalized model at the data; N equal on all processes.
        noise: ``(N, m)`` scores at samples of the noise distribution.
        log_normalizer: log Z; a constant, or a parameter, which is then driven to the log of the true normalizer.
        log_noise: log q, the same for every sample because the noise is uniform.

    Returns:
        The negative log-likelihood of one sample of data and its m of noise, averaged over N.

    Source: Gutmann and Hyvärinen, "Noise-contrastive estimation", AISTATS 2010, equation 3; Wu et al., 2018,
    arXiv:1805.01978, equation 7.
    """
    with full_precision(data):
        odds = log_normalizer + log_noise + math.log(noise.shape[1])  # the score at which data and noise are even
        missed = F.softplus(odds - upcast(data))
        taken = F.softplus(upcast(noise) - odds)
        return missed.mean() + taken.sum(1).mean()

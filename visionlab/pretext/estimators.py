"""Lower bounds on mutual information from the scores that a critic gives to pairs.

A score matrix has a row for each sample x and a column for each candidate y. Pairs that belong together (positives) are
samples of the joint distribution, all others (negatives) of the product of the marginals. The better the critic, the
tighter the bound, so a method minimizes the negative of a bound. Every bound is a sum over the pairs of this process
divided by the mean count over processes: averaged over processes, value and gradient are those of one process with the
whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab import distributed

Estimator = Callable[..., Tensor]


def own_columns(rows: int, columns: int, device: torch.device | str | None = None) -> Tensor:
    """Return which columns belong to each row of this process, where columns are those of all processes, gathered.

    Args:
        rows: number of rows of this process, N.
        columns: number of columns of all processes: P for each row of each process, in the order of rows.
        device: where the result is to be.

    Returns:
        ``(N, columns)`` bool, P times true in each row.

    Raises:
        ValueError: the columns cannot be shared out evenly over the rows of all processes.
    """
    everyone = rows * distributed.world_size()
    if rows < 1 or columns < 1 or columns % everyone:
        raise ValueError(f"scores: expected equally many columns for each of {everyone} rows, got {columns}")
    owner = torch.arange(columns, device=device) // (columns // everyone)
    return owner == torch.arange(rows, device=device)[:, None] + distributed.rank() * rows


def donsker_varadhan(scores: Tensor, positives: Tensor | None = None, negatives: Tensor | None = None) -> Tensor:
    """Return the bound of Donsker and Varadhan: the mean positive score minus the log of the mean exp negative score.

    The mean inside the logarithm is over the negatives of all processes. Over a minibatch it is too small on average
    after the logarithm (Jensen), so that minibatch estimates exceed the bound, and can exceed the truth, by about
    half the relative variance of that mean; the gradient is biased likewise. Only many pairs give a figure to report.

    Args:
        scores: ``(N, M)``, rows of this process.
        positives: ``(N, M)`` bool; by default ``own_columns``.
        negatives: ``(N, M)`` bool; by default all pairs that are not positive.

    Returns:
        A scalar, at most the mutual information in nats but for the bias.

    Source: Belghazi et al., "Mutual Information Neural Estimation", 2018, arXiv:1801.04062, equation 10.
    """
    scores, positives, negatives = _prepare(scores, positives, negatives)
    exponents = scores.masked_fill(~negatives, -math.inf).logsumexp((0, 1))
    count = distributed.average(negatives.sum().to(scores.dtype)) * distributed.world_size()
    return _mean(scores, positives) - (distributed.gather(exponents[None]).logsumexp(0) - count.log())


def nwj(scores: Tensor, positives: Tensor | None = None, negatives: Tensor | None = None) -> Tensor:
    """Return the bound of Nguyen, Wainwright and Jordan: unbiased in minibatches, of large variance at large scores.

    Args:
        scores: ``(N, M)``, rows of this process; the best critic is 1 plus the log ratio of the densities.
        positives: ``(N, M)`` bool; by default ``own_columns``.
        negatives: ``(N, M)`` bool; by default all pairs that are not positive.

    Returns:
        A scalar, at most the mutual information in nats.

    Source: Nguyen et al., "Estimating divergence functionals and the likelihood ratio by convex risk minimization",
    2010, arXiv:0809.0853; as in Poole et al., 2019, arXiv:1905.06922, equation 5.
    """
    scores, positives, negatives = _prepare(scores, positives, negatives)
    return _mean(scores, positives) - _mean((scores - 1).exp(), negatives)


def jensen_shannon(scores: Tensor, positives: Tensor | None = None, negatives: Tensor | None = None) -> Tensor:
    """Return a bound on twice the Jensen-Shannon divergence between joint distribution and product of the marginals.

    That divergence grows with the mutual information but is another quantity: it never exceeds log 2. Its gradient is
    bounded, which makes it the most forgiving of the four.

    Args:
        scores: ``(N, M)``, rows of this process; the best critic is the log ratio of the densities.
        positives: ``(N, M)`` bool; by default ``own_columns``.
        negatives: ``(N, M)`` bool; by default all pairs that are not positive.

    Returns:
        A scalar, at most twice the divergence in nats.

    Source: Nowozin et al., "f-GAN", 2016, arXiv:1606.00709, table 6; Hjelm et al., 2019, arXiv:1808.06670, equation 4,
    to which log 4 is added.
    """
    scores, positives, negatives = _prepare(scores, positives, negatives)
    return math.log(4) - _mean(F.softplus(-scores), positives) - _mean(F.softplus(scores), negatives)


def info_nce(scores: Tensor, positives: Tensor | None = None, negatives: Tensor | None = None) -> Tensor:
    """Return InfoNCE: how well each positive is picked out among itself and the negatives of its row.

    Other positives of the row take no part. The bound cannot exceed the log of the number of candidates.

    Args:
        scores: ``(N, M)``, rows of this process.
        positives: ``(N, M)`` bool; by default ``own_columns``.
        negatives: ``(N, M)`` bool; by default all pairs that are not positive.

    Returns:
        A scalar, at most the mutual information in nats.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, arXiv:1807.03748,
    equations 4 and 5.
    """
    scores, positives, negatives = _prepare(scores, positives, negatives)
    others = scores.masked_fill(~negatives, -math.inf).logsumexp(1, keepdim=True)
    candidates = negatives.sum(1, keepdim=True, dtype=scores.dtype) + 1
    return _mean(scores - torch.logaddexp(scores, others) + candidates.log(), positives)


ESTIMATORS: dict[str, Estimator] = {
    "dv": donsker_varadhan,
    "nwj": nwj,
    "jsd": jensen_shannon,
    "infonce": info_nce,
}


def _prepare(scores: Tensor, positives: Tensor | None, negatives: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if scores.ndim != 2:
        raise ValueError(f"scores: expected (N, M), got {tuple(scores.shape)}")
    if positives is None:
        positives = own_columns(len(scores), scores.shape[1], scores.device)
    for name, mask in (("positives", positives), ("negatives", negatives)):
        if mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool):
            expected = f"{tuple(scores.shape)} bool"
            raise ValueError(f"{name}: expected {expected}, got {tuple(mask.shape)} {mask.dtype}")
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return wide, positives, ~positives if negatives is None else negatives


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the sum of the chosen values of this process over the mean count of chosen ones over processes."""
    count = distributed.average(chosen.sum().to(values.dtype))
    return values.masked_fill(~chosen, 0).sum() / count

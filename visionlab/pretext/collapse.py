"""Meters that show an encoder giving every image the same answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLLAPSED_STD = 0.05
COLLAPSED_RANK = 1.5
MIN_ROWS = 8  # a healthy embedding of fewer images may lie close to a line


def embedding_std(embedding: Tensor) -> Tensor:
    """Return the mean standard deviation per dimension of the L2-normalized rows, times the root of the dimension.

    Args:
        embedding: ``(M, D)``.

    Returns:
        A scalar: 1 for directions spread evenly over the sphere, 0 when all rows point the same way.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", 2021, arXiv:2011.10566, section 4.1.
    """
    rows = F.normalize(embedding.detach().float())
    return rows.std(dim=0, correction=0).mean() * embedding.shape[1] ** 0.5


def effective_rank(embedding: Tensor) -> Tensor:
    """Return the exponential of the entropy of the centered embedding's singular values.

    Args:
        embedding: ``(M, D)``.

    Returns:
        A scalar between 1 (all rows on a line, or all equal) and ``min(M - 1, D)``.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    rows = embedding.detach().float()
    values = torch.linalg.svdvals(rows - rows.mean(dim=0))
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp()


def collapse_meters(embedding: Tensor, projection: Tensor | None = None) -> dict[str, float]:
    """Return the numbers that show a collapse, by the names they are logged under.

    Args:
        embedding: ``(M, D)`` pooled features of the encoder.
        projection: ``(M, P)`` what the loss compares, if there is such a thing.
    """
    meters = {"embedding_std": embedding_std(embedding), "effective_rank": effective_rank(embedding)}
    if projection is not None:
        meters |= {"projection_std": embedding_std(projection), "projection_rank": effective_rank(projection)}
    return {name: float(value) for name, value in meters.items()}


def collapse_warnings(embedding: Tensor, projection: Tensor | None = None) -> list[str]:
    """Return a sentence for each way in which a representation has collapsed; none for a healthy one.

    Args:
        embedding: ``(M, D)`` pooled features of the encoder; a single row tells nothing.
        projection: ``(M, P)`` what the loss compares, if there is such a thing.
    """
    found = _collapse("representation", "embedding", "embedding_std", "effective_rank", embedding)
    warnings = [f"{what}; a detector gains nothing from this encoder" for what in found]
    if projection is not None:
        found = _collapse("projection", "projection", "projection_std", "projection_rank", projection)
        warnings += [f"{what}; the loss has nothing to compare and the encoder stops learning" for what in found]
    return warnings


def _collapse(whole: str, each: str, std: str, rank: str, rows: Tensor) -> list[str]:
    if len(rows) > 1 and embedding_std(rows) < COLLAPSED_STD:
        return [f"the {whole} has COLLAPSED: all images get nearly the same {each} ({std} is below {COLLAPSED_STD})"]
    if len(rows) >= MIN_ROWS and effective_rank(rows) < COLLAPSED_RANK:
        line = f"images differ in one direction only ({rank} is below {COLLAPSED_RANK})"
        return [f"the {whole} has COLLAPSED to a line (dimensional collapse): {line}"]
    return []

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


def collapse_warnings(embedding: Tensor) -> list[str]:
    """Return a sentence for each way in which an embedding has collapsed; none for a healthy one.

    Args:
        embedding: ``(M, D)``; a single row tells nothing.
    """
    if len(embedding) > 1 and embedding_std(embedding) < COLLAPSED_STD:
        return [
            f"the representation has COLLAPSED: all images get nearly the same embedding (embedding_std is below "
            f"{COLLAPSED_STD}); a detector gains nothing from this encoder"
        ]
    if len(embedding) >= MIN_ROWS and effective_rank(embedding) < COLLAPSED_RANK:
        return [
            f"the representation has COLLAPSED to a line: images differ in one direction only (effective_rank is below "
            f"{COLLAPSED_RANK}); a detector gains nothing from this encoder"
        ]
    return []

"""Critics that score how well the code of an image fits places of a feature map, its own or another image's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from visionlab import distributed
from visionlab.precision import full_precision, upcast


class Scorer(nn.Module, ABC):
    """Scores every code of this process against every place of the maps of all processes.

    Args:
        code: embeds codes.
        feature: embeds what stands at a place of a map.
    """

    def __init__(self, code: nn.Module, feature: nn.Module):
        super().__init__()
        self.code, self.feature = code, feature

    def forward(self, codes: Tensor, features: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Return the scores.

        Args:
            codes: ``(N, code_dim)``.
            features: ``(N, P, feature_dim)``, P places of the map of each image.
            candidates: ``(N, K)`` the images of all processes that each code is compared with; by default all.

        Returns:
            ``(N, K, P)``; without candidates K is the number of images of all processes.
        """
        embedded = distributed.gather(self.feature(features))
        return self.compare(self.code(codes), embedded if candidates is None else embedded[candidates])

    @abstractmethod
    def compare(self, codes: Tensor, features: Tensor) -> Tensor:
        """Score embedded codes ``(N, H)`` against ``(M, P, H)``, which all share, or ``(N, K, P, H)``."""


class EncodeAndDot(Scorer):
    """Embeds codes and places each by a network of its own; the score is the dot product.

    Args:
        code_dim: width of the codes.
        feature_dim: channels of the maps.
        hidden_dim: width of both embeddings and of their hidden layers.

    Source: Hjelm et al., "Learning deep representations by mutual information estimation and maximization", 2019,
    arXiv:1808.06670, section 3.2 and appendix.
    """

    def __init__(self, code_dim: int, feature_dim: int, hidden_dim: int):
        super().__init__(_Residual(code_dim, hidden_dim), _Residual(feature_dim, hidden_dim))

    def compare(self, codes: Tensor, features: Tensor) -> Tensor:
        with full_precision(codes):
            codes, features = upcast(codes), upcast(features)
            if features.ndim == 3:
                return (codes @ features.flatten(0, 1).T).unflatten(1, features.shape[:2])
            return torch.einsum("nh,nkph->nkp", codes, features)


class ConcatAndConvolve(Scorer):
    """Joins the code to every place of a map and scores each by 1 x 1 convolutions with two hidden layers.

    Every pair goes through the network by itself, so time and memory grow with codes times candidates times places.
    The first layer is linear in the joined vectors, so what it makes of codes and of places is computed once and added.

    Args:
        code_dim: width of the codes.
        feature_dim: channels of the maps.
        hidden_dim: width of the hidden layers.

    Source: Hjelm et al. 2019, arXiv:1808.06670, section 3.2 and appendix.
    """

    def __init__(self, code_dim: int, feature_dim: int, hidden_dim: int):
        super().__init__(nn.Linear(code_dim, hidden_dim, bias=False), nn.Linear(feature_dim, hidden_dim))
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1))

    def compare(self, codes: Tensor, features: Tensor) -> Tensor:
        return self.rest(codes[:, None, None] + features).squeeze(-1)


class _Residual(nn.Module):
    """One hidden layer beside a linear shortcut."""

    def __init__(self, in_features: int, hidden_dim: int):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(in_features, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim, bias=False)
        )
        self.shortcut = nn.Linear(in_features, hidden_dim)

    def forward(self, values: Tensor) -> Tensor:
        return self.hidden(values) + self.shortcut(values)


SCORERS: dict[str, Callable[[int, int, int], Scorer]] = {"concat": ConcatAndConvolve, "dot": EncodeAndDot}

"""Adversarial matching of codes to a prior, in one backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from visionlab.precision import upcast
from visionlab.seeding import derive_seed


class PriorMatching(nn.Module):
    """Makes codes look as if they were drawn evenly from the unit cube.

    A discriminator learns to tell samples of the prior from codes, and the encoder to make codes that it takes for
    samples. Each has a loss of its own that does not reach the other: the discriminator's sees detached codes, the
    encoder's goes through a discriminator whose parameters are taken as constants. So both can be summed and need one
    backward pass and one optimizer, with the gradients that two would give.

    Args:
        code_dim: width of the codes.

    Source: Hjelm et al., "Learning deep representations by mutual information estimation and maximization", 2019,
    arXiv:1808.06670, equation 7; the encoder's loss is the one that does not saturate, of Goodfellow et al., 2014,
    arXiv:1406.2661, section 3.
    """

    def __init__(self, code_dim: int):
        super().__init__()
        self.discriminator = nn.Sequential(
            nn.Linear(code_dim, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 1)
        )

    def forward(self, codes: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the encoder's loss and the discriminator's.

        Args:
            codes: ``(N, code_dim)``; their sigmoid lies in the cube.
            seeds: one for each code; a sample of the prior is drawn from each.
        """
        points = upcast(codes).sigmoid()
        samples = uniform_samples(seeds, codes.shape[1]).to(points)
        real, fake = upcast(self.discriminator(samples)), upcast(self.discriminator(points.detach()))
        constants = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        frozen = upcast(functional_call(self.discriminator, constants, (points,)))
        return F.softplus(-frozen).mean(), (F.softplus(-real) + F.softplus(fake)).mean()


def uniform_samples(seeds: Sequence[int], dim: int) -> Tensor:
    """Return ``(len(seeds), dim)`` numbers in [0, 1), each row drawn from its seed alone."""
    generators = (torch.Generator().manual_seed(derive_seed(seed, "prior")) for seed in seeds)
    return torch.stack([torch.rand(dim, generator=generator) for generator in generators])

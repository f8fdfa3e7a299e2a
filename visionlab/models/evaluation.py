"""A network in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and each of its modules back in its own mode at the end, errors included.

    ``network.train(mode)`` would give all modules one mode, also those that are kept in evaluation mode because they
    are frozen.

    Args:
        network: in any mode.
    """
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True

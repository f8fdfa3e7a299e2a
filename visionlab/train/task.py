"""The interface between the loop and what is being learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Task(nn.Module, ABC):
    """What a run learns: a module whose forward turns a batch into named losses.

    Everything that a run must find again after a restart belongs into the module's ``state_dict``: parameters, momentum
    encoders, queues, counters. The loop calls ``forward`` through ``DistributedDataParallel`` where there are several
    processes, and everything else on the task itself.
    """

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of one batch; the loop minimizes their sum.

        Args:
            batch: an ``ImageBatch`` or ``ViewBatch`` on the device of the parameters.

        Returns:
            Scalar tensors by name, for example ``rpn/objectness``; the same names at every call and on every process.
        """

    def compilable(self) -> list[nn.Module]:
        """Return the modules that ``torch.compile`` makes faster: called as modules, by tensors alone, in ``forward``.

        Raises:
            ValueError: one of them cannot be compiled as it is.
        """
        return []

    def after_step(self, step: int, steps: int) -> None:
        """Do what belongs after a weight update, for example move a momentum encoder.

        It may depend on these numbers and the module's state alone, so that an interrupted run goes on the same.

        Args:
            step: the number of the update, from 0.
            steps: updates in the whole training.
        """

    def meters(self) -> dict[str, float]:
        """Return numbers to log beside the losses, for example ``{"accuracy": 0.5}``.

        Called on every process whenever a row is logged; the main process's numbers are the ones that are written.
        """
        return {}

    def warnings(self) -> list[str]:
        """Return warnings for the user, for example that the embedding has collapsed.

        Called after ``meters``; the log prints each sentence once in a run, so a sentence should not contain numbers
        that change.
        """
        return []

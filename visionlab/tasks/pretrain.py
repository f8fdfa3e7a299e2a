"""Pretraining: a pretext method trains an encoder on unlabelled images."""

from __future__ import annotations

from torch import Tensor

from visionlab.pretext import Pretext, PretextOutput
from visionlab.pretext.collapse import collapse_meters, collapse_warnings
from visionlab.structures import ViewBatch
from visionlab.train.task import Task


class PretrainTask(Task):
    """Train the encoder of a pretext method.

    Args:
        pretext: the method, with its encoder inside.
    """

    def __init__(self, pretext: Pretext):
        super().__init__()
        self.pretext = pretext
        self._last: PretextOutput | None = None

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the method's named losses of a batch of views."""
        output = self.pretext(batch)
        self._last = PretextOutput(
            {},
            output.embedding.detach(),
            {name: value.detach() for name, value in output.metrics.items()},
            None if output.projection is None else output.projection.detach(),
        )
        return output.losses

    def after_step(self, step: int, steps: int) -> None:
        self.pretext.after_step(step, steps)

    def meters(self) -> dict[str, float]:
        """Return the collapse meters and the method's own metrics of this process's last batch."""
        if self._last is None:
            return {}
        meters = {name: float(value) for name, value in self._last.metrics.items()}
        return meters | collapse_meters(self._last.embedding, self._last.projection)

    def warnings(self) -> list[str]:
        """Return what the collapse meters say of the last batch's representation, if it has collapsed."""
        if self._last is None:
            return []
        return collapse_warnings(self._last.embedding, self._last.projection) + self.pretext.warnings(self._last)

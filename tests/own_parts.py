"""A package of somebody else's, as a text that tests write: a method, a head, data, an optimizer, a schedule."""

from pathlib import Path

BYOL = '''
from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab.checks import check_in
from visionlab.data.views import Views, ViewSettings
from visionlab.models.fast_rcnn_head import FastRCNNHead
from visionlab.pretext import Pretext, PretextOutput
from visionlab.train.optim import LearningRate, WeightDecay, parameter_groups
from visionlab.settings import flat_settings


class BYOL(Pretext):
    """Predict what a slow copy says of another view.

    Args:
        encoder: the backbone to train.
        views: what is compared.
        momentum: the share of the slow copy that stays, in [0, 1].
        sizes: of nothing.
    """

    @flat_settings
    def __init__(
        self,
        encoder,
        *,
        views: ViewSettings = ViewSettings(image_size=32),
        momentum: float = 0.99,
        sizes: tuple[int, int] = (8, 4),
    ):
        super().__init__(encoder)
        check_in("[0, 1]", momentum=momentum)
        self.views = Views.crops(views=views, count=2)
        self.depth = encoder.settings["options"]
        self.predictor = nn.Sequential(
            nn.Linear(encoder.num_features, sizes[0]), nn.ReLU(), nn.Linear(sizes[0], encoder.num_features)
        )
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum = momentum

    def forward(self, batch):
        first, second = (self.encoder.normalize(view) for view in batch.views)
        features = self.encoder.pool(first)
        with torch.no_grad():
            keys = self.target.pool(second)
        loss = 2 - 2 * F.cosine_similarity(self.predictor(features), keys).mean()
        return PretextOutput({"regression": loss}, features)

    @torch.no_grad()
    def after_step(self, step, steps=None):
        for own, online in zip(self.target.parameters(), self.encoder.parameters()):
            own.lerp_(online, 1 - self.momentum)


class WideHead(FastRCNNHead):
    """Somebody's head."""


class Plain(torch.optim.Optimizer):
    """Somebody's optimizer.

    Args:
        params: what learns.
        lr (float): how fast.
        weight_decay (float): towards zero.
        speed (float): a factor, above 0.
    """

    def __init__(self, params, lr: float = 0.1, weight_decay: float = 0.0, speed: float = 1.0):
        if speed <= 0:
            raise ValueError(f"Invalid speed: {speed}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "speed": speed})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"] * group["speed"])


@flat_settings
def descent(module: nn.Module, *, rate: LearningRate, slow: bool = False) -> torch.optim.Optimizer:
    """Descend.

    Args:
        slow: or fast.
    """
    return torch.optim.SGD(parameter_groups(module, rate, WeightDecay(weight_decay=0.0)), lr=rate.lr)


def halved(steps: int, *, at: int = 1):
    """Halve the rate.

    Args:
        at: when.
    """
    return lambda step: 1.0 if step < at else 0.5


class Vague:
    def __init__(self, encoder, *, what):
        pass


class Broken(Pretext):
    def __init__(self, encoder, *, size: int = 1):
        super().__init__(encoder)
        raise KeyError("nothing")

    def forward(self, batch):
        return None


NUMBER = 3
'''


def write_package(folder: Path) -> None:
    """Write the package ``mypackage`` into a folder."""
    package = folder / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "byol.py").write_text(BYOL)
    (package / "torn.py").write_text("import there_is_no_such_module\n")

"""Contrastive predictive coding: predict the patches of an image from the rows before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab import distributed
from visionlab.checks import check_at_least, check_in
from visionlab.data.tiles import TileGap, TileGrid, Tiles, TileSettings, mosaic
from visionlab.data.views import ViewSettings
from visionlab.models.backbone import Backbone
from visionlab.models.norm import batch_norms
from visionlab.precision import full_precision, upcast
from visionlab.pretext.estimators import info_nce
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.tile_encoding import check_tile_size, encode_tiles
from visionlab.settings import flat_settings
from visionlab.structures import ViewBatch

# Each turns a grid ``(N, C, rows, columns)`` so that what is to be predicted lies below.
DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "down": lambda grid: grid,
    "up": lambda grid: grid.flip(2),
    "right": lambda grid: grid.transpose(2, 3),
    "left": lambda grid: grid.transpose(2, 3).flip(2),
}


class ContrastivePredictiveCoding(Pretext):
    """Predict the features of patches from a context that has seen the rows before them alone.

    The encoder sees each of a grid of overlapping patches by itself. Among the patches of all images of the batch, over
    all processes, each prediction is to pick the right one.

    Batch norm would tell every patch about those to be predicted. It is refused: the backbone has ``norm: group`` or
    ``frozen``, or no batch norm at all.

    Args:
        encoder: the backbone to train.
        views: the part of an image that the grid covers; an ``image_size`` of 256 gives the patches of 64 pixels of the
            first paper, 260 with a grid of 6 and an overlap of 0.55 those of 80 of the second.
        tiles: what becomes of each patch.
        layout: how many there are.
        overlap: share of its side that a patch has in common with the next, in (0, 1).
        directions: how many directions are predicted: down, then up, right and left, each with a context of its own.
        skip_rows: the next rows that are not predicted, because they overlap with what the context has seen.
        predict_rows: rows after those that are predicted.
        context_layers: blocks of masked convolutions; each widens the context by a column to either side.
        context_dim: channels inside a block.
        target_dim: width of the space in which predictions and patches are compared.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, arXiv:1807.03748,
    section 3.2; Henaff et al., "Data-Efficient Image Recognition with Contrastive Predictive Coding", 2020,
    arXiv:1905.09272, section 3.
    """

    @flat_settings
    def __init__(
        self,
        encoder: Backbone,
        *,
        views: ViewSettings = ViewSettings(image_size=256),
        tiles: TileSettings = TileSettings(color="drop"),
        layout: TileGrid = TileGrid(grid=7),
        overlap: float = 0.5,
        directions: int = 1,
        skip_rows: int = 1,
        predict_rows: int = 5,
        context_layers: int = 5,
        context_dim: int = 256,
        target_dim: int = 64,
    ):
        super().__init__(encoder)
        check_in("(0, 1)", overlap=overlap)
        check_in("[1, 4]", directions=directions)
        check_at_least(0, skip_rows=skip_rows)
        check_at_least(
            1, predict_rows=predict_rows, context_layers=context_layers, context_dim=context_dim, target_dim=target_dim
        )
        check_in("[1, 1000]", context_layers=context_layers)  # each is made, even where a config is only checked
        grid = layout.grid
        if skip_rows + predict_rows >= grid:
            raise ValueError(
                f"predict_rows: expected at most {grid - 1} together with skip_rows in a grid of {grid}, got "
                f"{predict_rows} + {skip_rows}"
            )
        _check_norm(encoder)
        self.views = Tiles(views=views, tiles=tiles, spacing=TileGap(gap=-overlap), layout=layout)
        check_tile_size(encoder, self.views.tile_size)
        self.grid = grid
        steps = range(skip_rows + 1, skip_rows + predict_rows + 1)
        self.directions = nn.ModuleDict(
            {
                name: _Direction(encoder.num_features, steps, context_layers, context_dim, target_dim)
                for name in list(DIRECTIONS)[:directions]
            }
        )

    def forward(self, batch: ViewBatch) -> PretextOutput:
        features = encode_tiles(self.encoder, batch.views)
        patches = features.permute(1, 2, 0).unflatten(2, (self.grid, self.grid))
        results = [
            result for name, direction in self.directions.items() for result in direction(DIRECTIONS[name](patches))
        ]
        information, accuracy = (torch.stack(values).mean() for values in zip(*results, strict=True))
        center = features[len(features) // 2]
        metrics = {"information": information, "accuracy": accuracy}
        return PretextOutput({"prediction": -information}, center, metrics)

    def pictures(self, batch: ViewBatch) -> ViewBatch:
        """Return the patches of each image at their places, drawn apart."""
        return replace(batch, views=[mosaic(batch.views)])


class _Direction(nn.Module):
    """Predicts rows of a grid from those above.

    Args:
        channels: width of the patches' features.
        steps: how many rows ahead to look.
        layers: blocks of the context network.
        context_dim: channels inside a block.
        target_dim: width of the space of comparison.
    """

    def __init__(self, channels: int, steps: range, layers: int, context_dim: int, target_dim: int):
        super().__init__()
        self.steps = steps
        self.context = nn.Sequential(*(MaskedBlock(channels, context_dim) for _ in range(layers)), nn.ReLU())
        self.target = nn.Linear(channels, target_dim)
        self.predictions = nn.ModuleList(nn.Linear(channels, target_dim) for _ in steps)

    def forward(self, patches: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return information and accuracy for each step ahead.

        Args:
            patches: ``(N, channels, rows, columns)``, to be predicted from above.
        """
        context = self.context(patches).permute(0, 2, 3, 1)
        targets = self.target(patches.permute(0, 2, 3, 1))
        own = torch.arange(targets[..., 0].numel(), device=patches.device).view(targets.shape[:3])
        own = own + own.numel() * distributed.rank()
        candidates = distributed.gather(targets.flatten(0, 2))
        results = []
        for step, predict in zip(self.steps, self.predictions, strict=True):
            predictions = predict(context[:, :-step]).flatten(0, 2)
            results.append(_contrast(predictions, candidates, own[:, step:].flatten()))
        return results


def _contrast(predictions: Tensor, candidates: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimated information of predictions about their targets, and how often they pick them.

    Args:
        predictions: ``(R, D)`` of this process.
        candidates: ``(M, D)`` patches of all processes.
        targets: ``(R,)`` int64, the candidate that each prediction means.
    """
    with full_precision(predictions):
        scores = upcast(predictions) @ upcast(candidates).T / predictions.shape[1] ** 0.5
    positives = targets[:, None] == torch.arange(len(candidates), device=targets.device)
    return info_nce(scores, positives), (scores.argmax(dim=1) == targets).float().mean()


class MaskedBlock(nn.Module):
    """Convolutions, beside a shortcut, by which each place of a grid learns of its row and of the one above.

    Args:
        channels: of the grid.
        hidden: channels in between.

    Source: Henaff et al. 2020, arXiv:1905.09272, appendix.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.across = nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(hidden, hidden, (2, 1))
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, grid: Tensor) -> Tensor:
        hidden = self.across(F.relu(self.reduce(grid)))
        hidden = self.down(F.pad(hidden, (0, 0, 1, 0)))  # a row of zeros above, none below
        return grid + self.expand(F.relu(hidden))


def _check_norm(encoder: Backbone) -> None:
    if encoder.norm in ("train", "sync") and batch_norms(encoder.model):
        raise ValueError(
            f"norm: expected group or frozen for cpc, got {encoder.norm}: batch norm would tell each patch about those "
            f"to be predicted"
        )

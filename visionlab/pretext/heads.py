"""Heads that pretext methods put on the encoder; none of them reaches the detector."""

from __future__ import annotations

from torch import nn

from visionlab.models.norm import SyncBatchNorm


def projection_mlp(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Return SimCLR's projection: linear, batch norm, ReLU, linear.

    The statistics of the batch norm are those of all processes, so their number changes nothing.

    Args:
        in_features: width of the pooled encoder features.
        hidden_features: width of the hidden layer.
        out_features: width of the projection.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, section 2.1.
    """
    return nn.Sequential(
        nn.Linear(in_features, hidden_features, bias=False),
        SyncBatchNorm(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features),
    )

"""Heads that pretext methods put on the encoder; none of them reaches the detector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from visionlab.checks import check_at_least
from visionlab.models.norm import SyncBatchNorm
from visionlab.settings import Settings


@dataclass(frozen=True, kw_only=True)
class HiddenWidth(Settings):
    """The hidden layers of a head.

    Args:
        hidden_dim: their width; null for none, that is a single linear layer.
    """

    hidden_dim: int | None = 2048

    def __post_init__(self) -> None:
        check_at_least(1, hidden_dim=self.hidden_dim)


@dataclass(frozen=True, kw_only=True)
class ProjectionWidth(Settings):
    """The space in which views are compared.

    Args:
        projection_dim: its width.
    """

    projection_dim: int = 128

    def __post_init__(self) -> None:
        check_at_least(1, projection_dim=self.projection_dim)


def projection_mlp(
    in_features: int, hidden_features: int | None, out_features: int, *, layers: int = 2
) -> nn.Sequential:
    """Return SimCLR's projection: linear, batch norm, ReLU, linear; or a deeper one of the same kind.

    The statistics of the batch norm are those of all processes, so their number changes nothing.

    Args:
        in_features: width of the pooled encoder features.
        hidden_features: width of the hidden layers; None for a single linear layer.
        out_features: width of the projection.
        layers: number of linear layers, at least 1; VICReg's expander has three.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, section 2.1;
    Bardes et al., "VICReg", 2022, arXiv:2105.04906, section 4.2.
    """
    modules: list[nn.Module] = []
    if hidden_features is not None:
        for _ in range(layers - 1):
            modules.append(nn.Linear(in_features, hidden_features, bias=False))
            modules += [SyncBatchNorm(hidden_features), nn.ReLU(inplace=True)]
            in_features = hidden_features
    return nn.Sequential(*modules, nn.Linear(in_features, out_features))


def queue_projection(in_features: int, hidden_features: int | None, out_features: int) -> nn.Module:
    """Return MoCo's projection: linear, ReLU, linear as in version 2, or a single linear layer as in version 1.

    There is no batch norm in it.

    Args:
        in_features: width of the pooled encoder features.
        hidden_features: width of the hidden layer; None for version 1.
        out_features: width of the projection.

    Source: Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020, arXiv:2003.04297.
    """
    if hidden_features is None:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(
        nn.Linear(in_features, hidden_features), nn.ReLU(inplace=True), nn.Linear(hidden_features, out_features)
    )


def dense_projection(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Return DenseCL's dense projection: the same MLP at every place of a feature map, as convolutions of 1x1.

    Args:
        in_features: channels of the feature map.
        hidden_features: channels in between.
        out_features: channels of the projection.

    Source: Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", 2021, arXiv:2011.09157,
    section 3.2.
    """
    return nn.Sequential(
        nn.Conv2d(in_features, hidden_features, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden_features, out_features, 1)
    )

"""What a backbone does with its BatchNorm layers: train, freeze, synchronize over processes, or become GroupNorm."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionlab import distributed

NormPolicy = Literal["train", "frozen", "sync", "group"]
Layer = TypeVar("Layer", bound=nn.Module)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose statistics are those of the batch of all processes, on CPU and GPU alike.

    Each process contributes count, mean and variance, which are joined as in Chan et al. 1979, so processes may hold
    different numbers of images; gradients flow through the joined statistics. In a single process and in evaluation it
    is plain BatchNorm. ``torch.nn.SyncBatchNorm`` does the same but refuses CPU tensors.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalize ``(N, C, ...)`` and apply the activation, if timm folded one into the layer it replaces."""
        if self.training and distributed.world_size() > 1:
            normalized = self._forward_joined(images)
        else:
            normalized = super().forward(images)
        return _apply_children(self, normalized)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"images: expected (N, C, ...), got {tuple(input.shape)}")

    def _forward_joined(self, images: Tensor) -> Tensor:
        rest = [0, *range(2, images.dim())]
        wide = torch.promote_types(images.dtype, torch.float32)
        variance, mean = torch.var_mean(images.to(wide), rest, correction=0)
        count = mean.new_full((1,), images.numel() / images.shape[1])
        counts, means, variances = distributed.gather(torch.cat([count, mean, variance])[None]).split(
            [1, len(mean), len(mean)], dim=1
        )
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        self._track(mean.detach(), variance.detach() * total / (total - 1))
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        shape = [1, -1] + [1] * (images.dim() - 2)
        return (images * scale.view(shape) + shift.view(shape)).to(images.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu and He 2018, arXiv:1803.08494) in the place of a BatchNorm."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalize ``(N, C, ...)`` and apply the activation, if timm folded one into the layer it replaces."""
        return _apply_children(self, super().forward(images))


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of a module, in the order of its definition."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def apply_norm_policy(module: nn.Module, policy: NormPolicy, name: str) -> None:
    """Give the BatchNorm layers of a module one policy, in place, keeping parameter names and values.

    Args:
        module: the model; it must not be a BatchNorm layer itself.
        policy: ``train`` leaves the layers as they are. ``frozen`` takes their affine parameters out of training;
            whoever owns the module also keeps them in evaluation mode. ``sync`` joins their statistics over all
            processes. ``group`` replaces them by GroupNorm, with 32 groups or the largest divisor of 32 that divides
            the channels.
        name: the model's name, for the message.

    Raises:
        ValueError: the policy would have no effect, because the model has no BatchNorm.
    """
    if policy == "train":
        return
    if not batch_norms(module):
        raise ValueError(f"norm: {policy} would have no effect, {name} has no BatchNorm; expected norm: train")
    if policy == "frozen":
        for layer in batch_norms(module):
            layer.requires_grad_(False)
    else:
        _replace(module, _synchronized if policy == "sync" else _grouped)


def _replace(module: nn.Module, convert: Callable[[_BatchNorm], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, convert(child))
        else:
            _replace(child, convert)


def _synchronized(layer: _BatchNorm) -> SyncBatchNorm:
    sync = SyncBatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    sync.load_state_dict(layer.state_dict(), strict=False)
    return _adopt_children(sync, layer)


def _grouped(layer: _BatchNorm) -> GroupNorm:
    group = GroupNorm(gcd(32, layer.num_features), layer.num_features, layer.eps, layer.affine)
    group.load_state_dict(layer.state_dict(), strict=False)
    return _adopt_children(group, layer)


def _adopt_children(new: Layer, old: nn.Module) -> Layer:
    # timm's BatchNormAct2d holds its dropout and activation as children; they keep their names and their order.
    for name, child in old.named_children():
        new.add_module(name, child)
    return new.train(old.training)


def _apply_children(module: nn.Module, features: Tensor) -> Tensor:
    for child in module.children():
        features = child(features)
    return features

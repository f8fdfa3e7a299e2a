"""Convolutions that compute what follows them, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from visionlab.precision import full_precision


class FoldedConv(nn.Module):
    """A convolution that computes what follows it, too.

    Where the weights are fewer than the values of the map that they make of an image, folded ones are kept, from the
    first use in a precision on. Elsewhere, in the late stages, folding would save little and keeping would double the
    memory: what follows is computed after the convolution. Both depend on the image's size alone.

    In training the weights are folded anew at each use, and the gradient goes through them to the convolution's. The
    convolution's output, which BatchNorm would keep for its gradient, is not needed.

    Args:
        conv: the convolution; neither its weights nor those of the normalization are written.
        norm: the normalization after it, in evaluation mode.
        relu: a ReLU comes last.
        trained: gradients are computed, and nothing is kept.

    Attributes:
        on_trial: fold whatever the size, and keep nothing.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: _BatchNorm | None = None, relu: bool = False, trained: bool = False
    ) -> None:
        super().__init__()
        self.layers = conv, norm  # in a tuple, because they are the network's own
        self.relu, self.trained, self.on_trial = relu, trained, True
        self._kept: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        """Return ``relu(norm(conv(images)) + other)``, or what of it there is."""
        conv, norm = self.layers
        kind = images.device.type
        images = images.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else conv.weight.dtype)
        if norm is not None and not self.on_trial and not self._pays(images):
            answer = self._convolve(images, conv.weight.to(images.dtype), _to(conv.bias, images.dtype))
            scale, shift = _scale_and_shift(norm)
            answer.mul_(scale[:, None, None]).add_(shift[:, None, None])
        elif self.on_trial or self.trained or not self._pays(images):
            answer = self._convolve(images, *self._fold(images.dtype))
        else:
            weight, bias = self._kept_for(images)
            if weight.is_mkldnn:
                return self._convolve_whole(images, weight, bias, other)
            answer = self._convolve(images, weight, bias)
        if other is not None:
            answer += other
        return answer.relu_() if self.relu else answer

    def _pays(self, images: Tensor) -> bool:
        conv = self.layers[0]
        height, width = (side // step for side, step in zip(images.shape[-2:], conv.stride, strict=True))
        # In training, weights are folded and kept for each step, and their gradient is folded, too.
        weights = conv.weight.numel() * (4 if self.trained else 1)
        return images.numel() > 0 and weights <= conv.out_channels * height * width

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv: Any = self.layers[0]
        with full_precision(images):  # all are of one precision already
            return F.conv2d(images, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def _convolve_whole(self, images: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None) -> Tensor:
        """Let oneDNN compute all at once."""
        convolution, last = torch.ops.mkldnn._convolution_pointwise, "relu" if self.relu else None
        arguments = (weight, bias, *_geometry(self.layers[0]))
        if other is None:
            return convolution(images, *arguments, last or "none", [], "")
        return convolution.binary(images, other.to(images.dtype), *arguments, "add", 1.0, last, [], None)

    def _kept_for(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in the images' precision, on the CPU in the layout that oneDNN wants."""
        if images.dtype not in self._kept:
            with torch.no_grad():
                weight, bias = self._fold(images.dtype)
            if _onednn_computes(images):
                reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
                weight = reorder(weight.to_mkldnn(), *_geometry(self.layers[0]), list(images.shape))
            elif images.is_contiguous(memory_format=torch.channels_last):
                weight = weight.contiguous(memory_format=torch.channels_last)
            self._kept[images.dtype] = weight, bias
        return self._kept[images.dtype]

    def _fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        conv, norm = self.layers
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            scale, shift = _scale_and_shift(norm)
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else torch.addcmul(shift, bias, scale)
        return weight.to(dtype), _to(bias, dtype)


class FoldedBlock(nn.Module):
    """A residual block whose last convolution adds the shortcut.

    Args:
        convs: the block's convolutions.
        shortcut: what makes the shortcut of the block's input; None is the input itself.
    """

    def __init__(self, convs: list[FoldedConv], shortcut: nn.Module | None) -> None:
        super().__init__()
        convs[-1].relu = True
        self.convs, self.shortcut = nn.ModuleList(convs), shortcut

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's answer."""
        other = images if self.shortcut is None else self.shortcut(images)
        for conv in self.convs[:-1]:
            images = conv(images)
        return self.convs[-1](images, other)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand of each channel that a normalization in evaluation mode comes to."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is None:
        return scale, -norm.running_mean * scale
    scale = scale * norm.weight
    return scale, torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)


def _geometry(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.padding, conv.stride, conv.dilation, conv.groups


def _to(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _onednn_computes(images: Tensor) -> bool:
    if images.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    narrow = images.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return images.dtype == torch.float32 or narrow

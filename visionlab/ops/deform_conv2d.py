"""Deformable convolution: every tap of the kernel samples where an offset moves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionlab.ops.checks import check_floating, check_shape, pair, refuse
from visionlab.ops.formats import cast, geometry, memory_format, widen
from visionlab.ops.reference import deform_conv2d as reference
from visionlab.ops.register import differentiable, once_differentiable, operator

_deform_conv2d = operator(
    "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? mask, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation) -> Tensor",
    reference.deform_conv2d,
)
_deform_conv2d_backward = operator(
    "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
    "int[] padding, int[] dilation, bool for_input, bool for_offset, bool for_weight, bool deterministic) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference.deform_conv2d_backward,
)


@torch.library.register_fake("visionlab::deform_conv2d")
def _fake(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
    return input.new_empty(shape).to(memory_format=memory_format(input))


@torch.library.register_fake("visionlab::deform_conv2d_backward")
def _fake_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    for_input: bool,
    for_offset: bool,
    for_weight: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def gradient(tensor: Tensor | None, wanted: bool) -> Tensor:
        if tensor is None or not wanted:
            return input.new_empty(0)
        return tensor.new_empty(tensor.shape).to(memory_format=memory_format(tensor))

    return (
        gradient(input, for_input),
        gradient(offset, for_offset),
        gradient(weight, for_weight),
        gradient(mask, for_offset),
    )


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, offset, weight, mask, _, *settings = inputs
    ctx.save_for_backward(input, offset, weight, mask)
    ctx.settings = settings


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    needs_input, needs_offset, needs_weight, needs_mask, needs_bias = ctx.needs_input_grad[:5]
    of_input = of_offset = of_weight = of_mask = None
    if needs_input or needs_offset or needs_weight or needs_mask:
        wanted = (needs_input, needs_offset or needs_mask, needs_weight)
        deterministic = torch.are_deterministic_algorithms_enabled()
        of_input, of_offset, of_weight, of_mask = _differentiate(
            grad, input, offset, weight, mask, *ctx.settings, *wanted, deterministic
        )
    return (
        of_input if needs_input else None,
        of_offset if needs_offset else None,
        of_weight if needs_weight else None,
        of_mask if needs_mask else None,
        grad.sum((0, 2, 3)) if needs_bias else None,
        *[None] * 3,
    )


_convolve = differentiable(_deform_conv2d, _setup, _backward)
_differentiate = once_differentiable(_deform_conv2d_backward)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve with taps that an offset moves, each tap linearly interpolated between the four cells around it.

    Dai et al. 2017, Deformable Convolutional Networks, arXiv:1703.06211; with ``mask`` Zhu et al. 2018, Deformable
    ConvNets v2, arXiv:1811.11168. The map is zero beyond its border, and the gradient of an offset is the true
    derivative there too; at a cell itself, where the derivative jumps, it is the one to the right and below. A sample
    that is not finite, or further than one cell outside the map, is 0 and has no gradient. Half precision is computed
    in float32.

    Args:
        input: ``(N, C, H, W)`` floating point; the answer has its dtype and memory format.
        offset: ``(N, 2 * G * kernel height * kernel width, H', W')`` in cells of the map; G groups of ``C / G``
            channels move together; planes in the order group, tap, (vertical, horizontal).
        weight: ``(O, C / groups, kernel height, kernel width)``; ``groups`` follows from its shape.
        bias: ``(O,)``, added to the answer.
        stride: step of the kernel, ``(vertical, horizontal)`` or one number for both.
        padding: cells of zeros around the map, likewise.
        dilation: distance between taps, likewise.
        mask: ``(N, G * kernel height * kernel width, H', W')``, multiplies each sample.

    Returns:
        ``(N, O, H', W')`` with ``H' = (H + 2 * padding - dilation * (kernel height - 1) - 1) // stride + 1``.

    Raises:
        ValueError: if shapes, dtypes, devices or sizes do not fit.
    """
    op = "deform_conv2d"
    settings = [
        list(pair(op, "stride", stride)),
        list(pair(op, "padding", padding, 0)),
        list(pair(op, "dilation", dilation)),
    ]
    given = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    check_floating(op, **{name: tensor for name, tensor in given.items() if tensor is not None})
    _check_shapes(input, offset, weight, bias, mask, *settings)
    values = widen(input)
    of_same = [None if tensor is None else tensor.to(values.dtype) for tensor in (mask, bias)]
    return cast(_convolve(values, geometry(offset, values), weight.to(values.dtype), *of_same, *settings), input.dtype)


def _check_shapes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> None:
    op = "deform_conv2d"
    check_shape(op, "input", input, "N", "C", "H", "W")
    check_shape(op, "weight", weight, "O", "C / groups", "kernel height", "kernel width")
    channels, (out_channels, inner, *kernel) = input.shape[1], weight.shape
    if not all(kernel):
        refuse(op, "weight", "at least one tap", f"shape {tuple(weight.shape)}")
    fits = channels % inner == 0 and channels >= inner if inner else channels == 0
    if not fits:
        refuse(op, "weight", f"a divisor of input's {channels} channels in its second dimension", inner)
    groups = channels // inner if inner and channels else 1
    if out_channels % groups:
        refuse(op, "weight", f"a multiple of its {groups} groups in its first dimension", out_channels)
    size = [
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]
    if not all(side >= 1 for side in size):
        refuse(op, "input", "a map as large as the kernel reaches", tuple(input.shape[2:]))
    if not all(side >= 1 for side in input.shape[2:]):
        refuse(op, "input", "pixels to sample from", f"shape {tuple(input.shape)}")
    taps = kernel[0] * kernel[1]
    check_shape(op, "offset", offset, input.shape[0], f"G * {2 * taps}", *size)
    offset_groups = offset.shape[1] // (2 * taps)
    if offset.shape[1] % (2 * taps) or offset_groups < 1 or channels % offset_groups:
        refuse(op, "offset", f"{2 * taps} planes for each of a divisor of input's {channels} channels", offset.shape[1])
    if mask is not None:
        check_shape(op, "mask", mask, input.shape[0], offset_groups * taps, *size)
    if bias is not None:
        check_shape(op, "bias", bias, out_channels)


class DeformConv2d(nn.Module):
    """A convolution whose offsets, and mask, come with the call, see :func:`deform_conv2d`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps ``(vertical, horizontal)``, or one number for both.
        stride: step of the kernel, likewise.
        padding: cells of zeros around the map, likewise.
        dilation: distance between taps, likewise.
        groups: groups of channels that see each other only; divides both numbers of channels.
        bias: whether a learned bias is added.

    Raises:
        ValueError: if a size makes no sense or the groups do not divide the channels.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for channels, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or value % groups:
                refuse(name, channels, f"a multiple of groups, {groups}", value)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(name, "kernel_size", kernel_size)
        self.stride = pair(name, "stride", stride)
        self.padding = pair(name, "padding", padding, 0)
        self.dilation = pair(name, "dilation", dilation)
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the convolution of ``input`` with its taps moved by ``offset`` and weighed by ``mask``."""
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else f"{text}, bias=False"

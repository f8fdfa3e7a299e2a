"""Deformable convolution with its own offset branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionlab.ops.checks import refuse
from visionlab.ops.deform_conv2d import DeformConv2d, deform_conv2d


class DeformConv2dPack(DeformConv2d):
    """A deformable convolution that computes its own offsets, and mask, from its input.

    A convolution ``offset_conv`` of the same kernel, stride, padding and dilation gives them. It starts at zero, so
    that at first the answer is that of ``torch.nn.Conv2d`` with the same weight and bias, and it can replace one in a
    trained model. For this the mask is ``2 * sigmoid``: 1 at first, and in (0, 2). Zhu et al. 2018 (arXiv:1811.11168)
    take ``sigmoid``, 0.5 at first; weights trained so are carried over by halving ``weight``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps ``(vertical, horizontal)``, or one number for both.
        stride: step of the kernel, likewise.
        padding: cells of zeros around the map, likewise.
        dilation: distance between taps, likewise.
        groups: groups of channels that see each other only; divides both numbers of channels.
        bias: whether a learned bias is added.
        offset_groups: groups of input channels that move together; divides ``in_channels``.
        modulated: False moves the taps (Dai et al. 2017, arXiv:1703.06211), True also weighs them (Zhu et al. 2018).

    Raises:
        ValueError: if a size makes no sense or the groups do not divide the channels.
    """

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
        offset_groups: int = 1,
        modulated: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        if offset_groups < 1 or in_channels % offset_groups:
            refuse("DeformConv2dPack", "in_channels", f"a multiple of offset_groups, {offset_groups}", in_channels)
        self.offset_groups = offset_groups
        self.modulated = modulated
        taps = offset_groups * self.kernel_size[0] * self.kernel_size[1]
        self.offset_conv = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * taps,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, and set the branch to zero."""
        super().reset_parameters()
        if hasattr(self, "offset_conv"):  # not yet while the convolution itself is made
            nn.init.zeros_(self.offset_conv.weight)
            nn.init.zeros_(self.offset_conv.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Return the convolution of ``input`` with its taps moved, and weighed, as its branch says."""
        branch = self.offset_conv(input)
        mask = None
        if self.modulated:
            planes = branch.shape[1] // 3
            branch, mask = branch[:, : 2 * planes], 2 * torch.sigmoid(branch[:, 2 * planes :])
        return deform_conv2d(input, branch, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        """Return the settings, as ``print`` shows them."""
        text = super().extra_repr()
        if self.offset_groups != 1:
            text += f", offset_groups={self.offset_groups}"
        return f"{text}, modulated=True" if self.modulated else text

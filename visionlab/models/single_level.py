"""No pyramid: both stages of a detector look at one level of the backbone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.checks import check_at_least
from visionlab.models.neck import Neck


class SingleLevel(Neck):
    """Gives the coarsest level of a backbone to both stages: proposals and RoIs come from the one map.

    As it is, the level is what Faster R-CNN looked at first (Ren et al. 2015, arXiv:1506.01497), with
    ``backbone.output_stride: 16`` the level of a DC5 detector. A 1x1 convolution and a ReLU may narrow it, as in the
    released code of R-FCN (Dai et al. 2016, arXiv:1605.06409, to 1024 channels) and of Deformable ConvNets (Dai et al.
    2017, arXiv:1703.06211, to 256 for Faster R-CNN).

    Args:
        in_channels: channels of each backbone level, finest first; only the last level is used.
        strides: stride of each backbone level in pixels.
        channels: channels that the level is narrowed to; by default it passes through.
    """

    def __init__(self, in_channels: list[int], strides: list[int], *, channels: int | None = None) -> None:
        check_at_least(1, channels=channels)
        super().__init__([channels or in_channels[-1]], strides[-1:])
        self.conv = None if channels is None else nn.Conv2d(in_channels[-1], channels, 1)
        if self.conv is not None:
            nn.init.kaiming_uniform_(self.conv.weight, a=1)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the one level.

        Args:
            features: the backbone's levels, finest first; the last is ``(N, C, H, W)``.

        Returns:
            One ``(N, channels, H, W)`` map.
        """
        return [features[-1] if self.conv is None else F.relu(self.conv(features[-1]))]

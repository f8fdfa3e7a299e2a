"""The second stage of Faster R-CNN: pooled features through two hidden layers."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.checks import check_at_least
from visionlab.models.head_settings import HeadSettings
from visionlab.models.pool import Pool
from visionlab.models.pools import POOL
from visionlab.models.roi_head import RoIHead
from visionlab.renames import moved_settings
from visionlab.settings import flat_settings


class FastRCNNHead(RoIHead):
    """Pools every RoI to one size and classifies it with two hidden layers.

    Source: Girshick, Fast R-CNN, 2015, arXiv:1504.08083; the defaults are torchvision's.

    Args:
        channels: channels of every level.
        strides: stride of each level to pool from in pixels, finest first.
        num_classes: object classes, without background.
        fc_channels: width of the two hidden layers.
        pool: how a RoI is pooled.
    """

    @moved_settings(
        "pool",
        {
            "pool_size": "output_size",
            "sampling_ratio": "sampling_ratio",
            "aligned": "aligned",
            "canonical_size": "canonical_size",
        },
    )
    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        num_classes: int,
        *,
        fc_channels: int = 1024,
        pool: Annotated[dict[str, Any], POOL] = {"name": "roi_align"},  # noqa: B006
        settings: HeadSettings = HeadSettings(),
    ) -> None:
        super().__init__(channels, strides, num_classes, settings=settings)
        check_at_least(1, fc_channels=fc_channels)
        self.pool: Pool = POOL.build("pool", pool, channels, strides)
        self.fc1 = nn.Linear(self.pool.channels * self.pool.output_size**2, fc_channels)
        self.fc2 = nn.Linear(fc_channels, fc_channels)
        self.classes = nn.Linear(fc_channels, num_classes + 1)
        self.offsets = nn.Linear(fc_channels, self.box_sets * 4)
        for hidden in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(hidden.weight, a=1)
        # Small last layers: all classes start equally likely and all boxes where the proposals are.
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.offsets.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.classes, self.offsets):
            nn.init.zeros_(layer.bias)

    def class_blocks(self) -> dict[str, int]:
        """Return the last two layers; see ``RoIHead.class_blocks``."""
        boxes = {} if self.settings.class_agnostic else {"offsets.weight": 0, "offsets.bias": 0}
        return {"classes.weight": 1, "classes.bias": 1, **boxes}

    def hidden(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """Return ``(K, fc_channels)``; see ``RoIHead.hidden``."""
        pooled = self.pool(maps, rois)
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes and boxes; see ``RoIHead.predict``."""
        return self.classes(hidden), self.offsets(hidden).unflatten(1, (self.box_sets, 4))

"""The second stage of Faster R-CNN on one level: the last stage of the backbone, run on each RoI."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from visionlab.models.head_settings import HeadSettings
from visionlab.models.pools import POOL, Pool
from visionlab.models.roi_head import RoIHead
from visionlab.models.roi_stage import RoIStage
from visionlab.settings import flat_settings


class Res5Head(RoIHead):
    """Runs the stage of the backbone that follows the level on every pooled RoI, and classifies the mean over places.

    With a ResNet that gives stride 16 to ``single_level``, this is the "C4" detector. Its stage, ``res5`` in the paper
    and ``layer4`` in timm, starts from the weights of pretraining.

    Source: He et al., Deep Residual Learning, 2016, arXiv:1512.03385, appendix A; Ren et al., Faster R-CNN, 2015,
    arXiv:1506.01497.

    Args:
        channels: channels of every level.
        strides: stride of each level to pool from in pixels, finest first.
        num_classes: object classes, without background.
        stage: of a backbone with the setting ``roi_stage``.
        pool: how a RoI is pooled, to 14 x 14 by default as in the paper.
    """

    needs_stage = True

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        num_classes: int,
        stage: RoIStage,
        *,
        pool: Annotated[dict[str, Any], POOL] = {"name": "roi_align", "output_size": 14},  # noqa: B006
        settings: HeadSettings = HeadSettings(),
    ) -> None:
        super().__init__(channels, strides, num_classes, settings=settings)
        self.pool: Pool = POOL.build("pool", pool, channels, strides)
        if self.pool.channels != stage.in_channels:
            raise ValueError(
                f"pool: expected RoIs of {stage.in_channels} channels for the backbone's stage, which single_level "
                f"passes on, got {self.pool.channels}"
            )
        self.stage = stage
        self.classes = nn.Linear(stage.channels, num_classes + 1)
        self.offsets = nn.Linear(stage.channels, self.box_sets * 4)
        # Small last layers: all classes start equally likely and all boxes where the proposals are.
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.offsets.weight, std=0.001)
        for layer in (self.classes, self.offsets):
            nn.init.zeros_(layer.bias)

    def class_blocks(self) -> dict[str, int]:
        """Return the two layers; see ``RoIHead.class_blocks``."""
        boxes = {} if self.settings.class_agnostic else {"offsets.weight": 0, "offsets.bias": 0}
        return {"classes.weight": 1, "classes.bias": 1, **boxes}

    def layers(self) -> list[nn.Module]:
        """Return the head and the layers of the backbone's stage; see ``RoIHead.layers``."""
        return [self, *self.stage.layers]

    def hidden(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """Return ``(K, stage.channels)``; see ``RoIHead.hidden``."""
        return self.stage(self.pool(maps, rois)).mean((2, 3))

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes and boxes; see ``RoIHead.predict``."""
        return self.classes(hidden), self.offsets(hidden).unflatten(1, (self.box_sets, 4))

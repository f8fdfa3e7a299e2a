"""The second stage of R-FCN: position-sensitive score maps, of which each RoI only takes a vote."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionlab.checks import check_at_least
from visionlab.models.head_settings import HeadSettings
from visionlab.models.pool import PositionSensitivePool
from visionlab.models.pools import POOL, POOLS
from visionlab.models.roi_head import RoIHead
from visionlab.settings import flat_settings


class RFCNHead(RoIHead):
    """Scores every place of the image once for each of k * k parts of an object; a RoI is the mean of its bins' scores.

    All that learns is computed once for an image, so a RoI costs next to nothing. k is the ``output_size`` of the pool.
    With ``deform_ps_roi_pool`` it is deformable R-FCN: each class has offsets of its own, and all boxes share some (Dai
    et al., Deformable Convolutional Networks, 2017, arXiv:1703.06211).

    Source: Dai et al., R-FCN, 2016, arXiv:1605.06409; initialized as in the authors' released code.

    Args:
        channels: channels of every level.
        strides: stride of each level to pool from in pixels, finest first.
        num_classes: object classes, without background.
        map_channels: width of the 1x1 convolution before the maps; None where the neck has narrowed the level already.
        background_box: whether the box maps that all classes share come twice, as in the released code: those of
            background, which nothing looks at, before those of objects.
        pool: how a RoI is pooled; each bin from maps of its own.
    """

    @flat_settings
    def __init__(
        self,
        channels: int,
        strides: list[int],
        num_classes: int,
        *,
        map_channels: int | None = 1024,
        background_box: bool = False,
        pool: Annotated[dict[str, Any], POOL] = {"name": "ps_roi_pool"},  # noqa: B006
        settings: HeadSettings = HeadSettings(class_agnostic=True),
    ) -> None:
        super().__init__(channels, strides, num_classes, settings=settings)
        check_at_least(1, map_channels=map_channels)
        if background_box and not settings.class_agnostic:
            raise ValueError("background_box: no effect without class_agnostic, as each class has a box of its own")
        kind, bins = _kind_and_bins(pool)
        width = map_channels or channels
        self.given_boxes = self.box_sets + background_box  # of which the last box_sets are looked at
        planes = bins * (num_classes + 1), bins * 4 * self.given_boxes
        of_classes, of_boxes = ((width, num_classes + 1), (width,)) if kind.bins_move else ((), ())
        self.class_pool: PositionSensitivePool = POOL.build("pool", pool, planes[0], strides, *of_classes)
        self.box_pool: PositionSensitivePool = POOL.build("pool", pool, planes[1], strides, *of_boxes)
        self.map_conv = nn.Conv2d(channels, width, 1) if map_channels else None
        self.classes, self.offsets = (nn.Conv2d(width, count, 1) for count in planes)
        for layer in (self.map_conv, self.classes, self.offsets):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def class_blocks(self) -> dict[str, int]:
        """Return the score maps, and what is per class beside them; see ``RoIHead.class_blocks``."""
        names = {"classes": 1} if self.settings.class_agnostic else {"classes": 1, "offsets": 0}
        blocks = {f"{name}.{kind}": further for name, further in names.items() for kind in ("weight", "bias")}
        return blocks | {f"class_pool.{name}": 1 for name in self.class_pool.rows_of_sets()}

    def maps(self, features: list[Tensor]) -> list[Tensor]:
        """Return the score maps of all levels, their box maps, and what moves the bins of both, if they move.

        Args:
            features: one ``(N, C, H, W)`` map per level, finest first.
        """
        sources = features if self.map_conv is None else [F.relu(self.map_conv(feature)) for feature in features]
        scores, boxes = ([layer(source) for source in sources] for layer in (self.classes, self.offsets))
        return [*scores, *boxes, *self.class_pool.moves_of(sources), *self.box_pool.moves_of(sources)]

    def hidden(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """Return what each bin says, ``(K, num_classes + 1 + 4 * sets, k, k)``: of classes, then of boxes.

        Args:
            maps: of ``maps``.
            rois: ``(K, 5)``: index of the image in the batch, then the box in pixels.
        """
        levels = len(self.strides)
        scores, boxes, *moves = (maps[first : first + levels] for first in range(0, len(maps), levels))
        of_classes, of_boxes = moves or ((), ())
        return torch.cat((self.class_pool(scores, rois, of_classes), self.box_pool(boxes, rois, of_boxes)), dim=1)

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of the bins; see ``RoIHead.predict``."""
        scores, offsets = hidden.mean((2, 3)).tensor_split((self.num_classes + 1,), dim=1)
        return scores, offsets.unflatten(1, (self.given_boxes, 4))[:, -self.box_sets :]


def _kind_and_bins(pool: Mapping[str, Any]) -> tuple[type[PositionSensitivePool], int]:
    """Return the class of a pool and how many bins it has, and refuse one whose bins share maps."""
    try:
        kind, settings = POOL.find(pool.get("name", "")), POOL.complete(pool)
    except ValueError as error:
        raise ValueError(f"pool.{error}") from error
    if not (inspect.isclass(kind) and issubclass(kind, PositionSensitivePool)):
        names = [name for name, row in POOLS.items() if issubclass(row, PositionSensitivePool)]
        raise ValueError(
            f"pool.name: expected a position-sensitive pool, {' or '.join(names)}, because each bin votes by maps of"
            f" its own, got {settings['name']}"
        )
    return kind, settings["output_size"] ** 2

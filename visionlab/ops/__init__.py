"""Vision operators: tensors in, tensors out, with torchvision's names, argument order and defaults.

Every name of ``torchvision.ops`` is here. Those that are not visionlab's own are torchvision's, imported on first use.
"""

from typing import Any

from visionlab.ops import delegate
from visionlab.ops.boxes import box_area, box_iou, clip_boxes_to_image, remove_small_boxes
from visionlab.ops.nms import batched_nms, nms
from visionlab.ops.roi_align import RoIAlign, roi_align

__all__ = [
    "RoIAlign",
    "batched_nms",
    "box_area",
    "box_iou",
    "clip_boxes_to_image",
    "nms",
    "remove_small_boxes",
    "roi_align",
]


def __getattr__(name: str) -> Any:
    if name not in delegate.NAMES:
        raise AttributeError(f"module 'visionlab.ops' has no attribute {name!r}")
    value = globals()[name] = delegate.torchvision_name(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *delegate.NAMES})

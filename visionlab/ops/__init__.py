"""Vision operators: tensors in, tensors out, with torchvision's names, argument order and defaults.

Every name of ``torchvision.ops`` is here. Those that are not visionlab's own are torchvision's, imported on first use.
"""

from typing import Any

from visionlab.ops import delegate, onnx
from visionlab.ops.boxes import box_area, box_iou, clip_boxes_to_image, remove_small_boxes
from visionlab.ops.deform_conv2d import DeformConv2d, deform_conv2d
from visionlab.ops.deform_modules import DeformConv2dPack
from visionlab.ops.deform_ps_roi_pool import DeformPSRoIPool, deform_ps_roi_pool
from visionlab.ops.deform_roi_pool import DeformRoIPool, deform_roi_pool
from visionlab.ops.deform_roi_pool_pack import DeformPSRoIPoolPack, DeformRoIPoolPack
from visionlab.ops.multi_scale_roi_align import MultiScaleRoIAlign, multi_scale_roi_align
from visionlab.ops.nms import batched_nms, nms, nms_padded
from visionlab.ops.ps_roi_align import PSRoIAlign, ps_roi_align
from visionlab.ops.ps_roi_pool import PSRoIPool, ps_roi_pool
from visionlab.ops.roi_align import RoIAlign, roi_align
from visionlab.ops.roi_pool import RoIPool, roi_pool
from visionlab.ops.soft_nms import soft_nms

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformPSRoIPool",
    "DeformPSRoIPoolPack",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "batched_nms",
    "box_area",
    "box_iou",
    "clip_boxes_to_image",
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "multi_scale_roi_align",
    "nms",
    "nms_padded",
    "ps_roi_align",
    "ps_roi_pool",
    "remove_small_boxes",
    "roi_align",
    "roi_pool",
    "soft_nms",
]

onnx.register()


def __getattr__(name: str) -> Any:
    if name not in delegate.NAMES:
        raise AttributeError(f"module 'visionlab.ops' has no attribute {name!r}")
    value = globals()[name] = delegate.torchvision_name(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *delegate.NAMES})

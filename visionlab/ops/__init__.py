"""Vision operators: tensors in, tensors out, with torchvision's names, argument order and defaults."""

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

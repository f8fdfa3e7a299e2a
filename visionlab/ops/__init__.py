"""Vision operators: tensors in, tensors out, with torchvision's names, argument order and defaults."""

from visionlab.ops.nms import batched_nms, nms
from visionlab.ops.roi_align import RoIAlign, roi_align

__all__ = ["RoIAlign", "batched_nms", "nms", "roi_align"]

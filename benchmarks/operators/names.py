"""The operators with kernels, by their public names; known without importing torch."""

OPERATORS = [
    "batched_nms",
    "box_iou",
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "multi_scale_roi_align",
    "nms",
    "nms_padded",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "soft_nms",
]

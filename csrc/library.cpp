// The table of operators: one row each. Kernels register themselves for a device in csrc/ops/<device>/<op>.cpp.
// Each file of visionlab/ops repeats its rows, for an install without this library.
#include "common.h"
#include "simd.h"

namespace visionlab {

std::string simd_level() { return simd::name(simd::level()); }

}  // namespace visionlab

STABLE_TORCH_LIBRARY(visionlab, m) {
    m.def("box_iou(Tensor boxes1, Tensor boxes2, int format) -> Tensor");
    m.def("box_iou_backward(Tensor grad, Tensor boxes, Tensor others, int format) -> Tensor");
    m.def(
        "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? mask, Tensor? bias, int[] stride, "
        "int[] padding, int[] dilation) -> Tensor");
    m.def(
        "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
        "int[] padding, int[] dilation, bool for_input, bool for_offset, bool for_weight, bool deterministic) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "deform_ps_roi_pool(Tensor input, Tensor boxes, Tensor? offset, Tensor? mask, SymInt pooled_height, "
        "SymInt pooled_width, float spatial_scale, int group_height, int group_width, int sample_per_part, "
        "float gamma) -> Tensor");
    m.def(
        "deform_ps_roi_pool_backward(Tensor grad, Tensor input, Tensor boxes, Tensor? offset, Tensor? mask, "
        "float spatial_scale, int group_height, int group_width, int sample_per_part, float gamma, bool input_grad, "
        "bool offset_grad, bool deterministic) -> (Tensor, Tensor, Tensor)");
    m.def(
        "deform_roi_pool(Tensor input, Tensor boxes, Tensor offset, Tensor? mask, float spatial_scale, "
        "int sampling_ratio, float gamma) -> Tensor");
    m.def(
        "deform_roi_pool_backward(Tensor grad, Tensor input, Tensor boxes, Tensor offset, Tensor? mask, "
        "float spatial_scale, int sampling_ratio, float gamma, bool input_grad, bool offset_grad, bool deterministic) "
        "-> (Tensor, Tensor, Tensor)");
    m.def(
        "multi_scale_roi_align(Tensor[] features, Tensor boxes, Tensor levels, SymInt pooled_height, "
        "SymInt pooled_width, float[] scales, int sampling_ratio, bool aligned) -> Tensor");
    m.def(
        "multi_scale_roi_align_backward(Tensor grad, Tensor boxes, Tensor levels, SymInt batch, SymInt channels, "
        "SymInt[] heights, SymInt[] widths, float[] scales, int sampling_ratio, bool aligned, bool channels_last, "
        "bool deterministic) -> Tensor[]");
    m.def("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor");
    m.def("nms_padded(Tensor boxes, Tensor scores, float iou_threshold, SymInt max_output) -> (Tensor, Tensor)");
    m.def(
        "soft_nms(Tensor boxes, Tensor scores, float iou_threshold, float sigma, float score_threshold, int method) "
        "-> (Tensor, Tensor)");
    m.def(
        "roi_align(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, float spatial_scale, "
        "int sampling_ratio, bool aligned) -> Tensor");
    m.def(
        "roi_align_backward(Tensor grad, Tensor boxes, SymInt batch, SymInt channels, SymInt height, SymInt width, "
        "float spatial_scale, int sampling_ratio, bool aligned, bool channels_last, bool deterministic) -> Tensor");
    m.def(
        "roi_pool(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, float spatial_scale, "
        "bool with_argmax) -> (Tensor, Tensor)");
    m.def(
        "roi_pool_backward(Tensor grad, Tensor argmax, Tensor boxes, SymInt batch, SymInt channels, SymInt height, "
        "SymInt width, float spatial_scale, bool channels_last, bool deterministic) -> Tensor");
    m.def(
        "ps_roi_align(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, float spatial_scale, "
        "int sampling_ratio) -> Tensor");
    m.def(
        "ps_roi_align_backward(Tensor grad, Tensor boxes, SymInt batch, SymInt channels, SymInt height, SymInt width, "
        "float spatial_scale, int sampling_ratio, bool channels_last, bool deterministic) -> Tensor");
    m.def(
        "ps_roi_pool(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, float spatial_scale) -> "
        "Tensor");
    m.def(
        "ps_roi_pool_backward(Tensor grad, Tensor boxes, SymInt batch, SymInt channels, SymInt height, SymInt width, "
        "float spatial_scale, bool channels_last, bool deterministic) -> Tensor");
    m.def("simd_level() -> str");
    m.def("cuda_build() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(visionlab, CompositeExplicitAutograd, m) {
    m.impl("simd_level", TORCH_BOX(&visionlab::simd_level));
}

// Position-sensitive RoIPool on CUDA: tensors in, tensors out.
#include "ps_roi_pool.h"

#include "../../cuda/glue.h"

namespace visionlab {

namespace {

MapLayout pooled_layout(const MapLayout& map, int64_t boxes, int64_t height, int64_t width) {
    if (height < 1 || width < 1 || map.channels % (height * width) != 0) {
        fail("ps_roi_pool: input: expected a multiple of ", height, " * ", width, " channels, got ", map.channels);
    }
    return {boxes, map.channels / (height * width), height, width, map.channels_last};
}

Tensor ps_roi_pool(const Tensor& input, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                   double spatial_scale) {
    const CudaCall call(input);
    const bool channels_last = is_channels_last(input);
    const MapLayout map{input.size(0), input.size(1), input.size(2), input.size(3), channels_last};
    const MapLayout pooled = pooled_layout(map, boxes.size(0), pooled_height, pooled_width);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(input, {pooled.batch, pooled.channels, pooled.height, pooled.width}, channels_last);
    check_cuda(cuda_ps_roi_pool(dtype_of(input, "ps_roi_pool"), source.const_data_ptr(), rows.const_data_ptr(),
                                output.mutable_data_ptr(), map, pooled, spatial_scale, call.stream()),
               "ps_roi_pool");
    return output;
}

Tensor ps_roi_pool_backward(const Tensor& grad, const Tensor& boxes, int64_t batch, int64_t channels, int64_t height,
                            int64_t width, double spatial_scale, bool channels_last, bool deterministic) {
    const CudaCall call(grad);
    const MapLayout map{batch, channels, height, width, channels_last};
    const MapLayout pooled = pooled_layout(map, boxes.size(0), grad.size(2), grad.size(3));
    const Tensor values = torch::stable::contiguous(grad, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(grad, {batch, channels, height, width}, channels_last);
    if (!deterministic) torch::stable::zero_(output);
    check_cuda(cuda_ps_roi_pool_backward(dtype_of(grad, "ps_roi_pool_backward"), values.const_data_ptr(),
                                         rows.const_data_ptr(), output.mutable_data_ptr(), map, pooled, spatial_scale,
                                         deterministic, call.stream()),
               "ps_roi_pool_backward");
    return output;
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("ps_roi_pool", TORCH_BOX(&visionlab::ps_roi_pool));
    m.impl("ps_roi_pool_backward", TORCH_BOX(&visionlab::ps_roi_pool_backward));
}

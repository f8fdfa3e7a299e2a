// RoIPool on CUDA: tensors in, tensors out.
#include "roi_pool.h"

#include <tuple>

#include "../../cuda/glue.h"

namespace visionlab {

namespace {

void check_area(const MapLayout& map) {
    if (map.area() >= int64_t(1) << 31) {
        fail("roi_pool: input: expected less than 2^31 pixels, got ", map.height, " x ", map.width);
    }
}

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& boxes, int64_t pooled_height,
                                    int64_t pooled_width, double spatial_scale, bool with_argmax) {
    const CudaCall call(input);
    const bool channels_last = is_channels_last(input);
    const MapLayout map{input.size(0), input.size(1), input.size(2), input.size(3), channels_last};
    const MapLayout pooled{boxes.size(0), map.channels, pooled_height, pooled_width, channels_last};
    check_area(map);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(input, {pooled.batch, pooled.channels, pooled.height, pooled.width}, channels_last);
    Tensor argmax = with_argmax ? torch::stable::empty({pooled.batch, pooled.channels, pooled.height, pooled.width},
                                                       ScalarType::Int, std::nullopt, input.device(), std::nullopt,
                                                       format(channels_last))
                                : torch::stable::new_empty(input, {0}, ScalarType::Int);
    int32_t* cells = with_argmax ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr;
    check_cuda(cuda_roi_pool(dtype_of(input, "roi_pool"), source.const_data_ptr(), rows.const_data_ptr(),
                             output.mutable_data_ptr(), cells, map, pooled, spatial_scale, call.stream()),
               "roi_pool");
    return {output, argmax};
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& argmax, const Tensor& boxes, int64_t batch, int64_t channels,
                         int64_t height, int64_t width, double spatial_scale, bool channels_last, bool deterministic) {
    const CudaCall call(grad);
    const MapLayout map{batch, channels, height, width, channels_last};
    const MapLayout pooled{grad.size(0), channels, grad.size(2), grad.size(3), channels_last};
    check_area(map);
    if (argmax.numel() != pooled.count()) {
        fail("roi_pool: the forward pass was not asked for argmax, so it has no gradient");
    }
    const Tensor values = torch::stable::contiguous(grad, format(channels_last));
    const Tensor cells = torch::stable::contiguous(argmax, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(grad, {batch, channels, height, width}, channels_last);
    if (!deterministic) torch::stable::zero_(output);
    check_cuda(
        cuda_roi_pool_backward(dtype_of(grad, "roi_pool_backward"), values.const_data_ptr(),
                               static_cast<const int32_t*>(cells.const_data_ptr()), rows.const_data_ptr(),
                               output.mutable_data_ptr(), map, pooled, spatial_scale, deterministic, call.stream()),
        "roi_pool_backward");
    return output;
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("roi_pool", TORCH_BOX(&visionlab::roi_pool));
    m.impl("roi_pool_backward", TORCH_BOX(&visionlab::roi_pool_backward));
}

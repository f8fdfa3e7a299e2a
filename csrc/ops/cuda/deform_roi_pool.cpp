#include <tuple>

#include "../../cuda/glue.h"
#include "../shifted_bins.h"

namespace visionlab {

// deform_roi_pool.cu
int launch_deform_roi_pool(DType dtype, const Bins& bins, const void* input, const void* boxes, const void* offset,
                           const void* mask, double spatial_scale, int64_t sampling_ratio, double gamma, void* output,
                           void* stream);
int launch_deform_roi_pool_backward(DType dtype, const Bins& bins, const void* grad, const void* input,
                                    const void* boxes, const void* offset, const void* mask, double spatial_scale,
                                    int64_t sampling_ratio, double gamma, void* grad_input, void* grad_offset,
                                    void* grad_mask, bool deterministic, void* stream);

namespace {

Bins make_bins(const Tensor& input, const Tensor& offset, bool channels_last) {
    return {input.size(0),  input.size(1),  input.size(2),
            input.size(3),  offset.size(0), input.size(1),
            offset.size(2), offset.size(3), 1,
            offset.size(2), offset.size(3), channels_last};
}

Tensor deform_roi_pool_cuda(const Tensor& input, const Tensor& boxes, const Tensor& offset, std::optional<Tensor> mask,
                            double spatial_scale, int64_t sampling_ratio, double gamma) {
    const CudaCall call(input);
    const bool channels_last = is_channels_last(input);
    const Bins bins = make_bins(input, offset, channels_last);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor corners = torch::stable::contiguous(boxes), shifts = torch::stable::contiguous(offset);
    const Tensor factors = mask ? torch::stable::contiguous(*mask) : corners;
    Tensor output = new_output(input, {bins.boxes, bins.channels, bins.height, bins.width}, channels_last);
    check_cuda(launch_deform_roi_pool(dtype_of(input, "deform_roi_pool"), bins, source.const_data_ptr(),
                                      corners.const_data_ptr(), shifts.const_data_ptr(),
                                      mask ? factors.const_data_ptr() : nullptr, spatial_scale, sampling_ratio, gamma,
                                      output.mutable_data_ptr(), call.stream()),
               "deform_roi_pool");
    return output;
}

std::tuple<Tensor, Tensor, Tensor> deform_roi_pool_backward_cuda(const Tensor& grad, const Tensor& input,
                                                                 const Tensor& boxes, const Tensor& offset,
                                                                 std::optional<Tensor> mask, double spatial_scale,
                                                                 int64_t sampling_ratio, double gamma, bool input_grad,
                                                                 bool offset_grad, bool deterministic) {
    const CudaCall call(input);
    const bool channels_last = is_channels_last(input);
    const Bins bins = make_bins(input, offset, channels_last);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor grads = torch::stable::contiguous(grad, format(channels_last));
    const Tensor corners = torch::stable::contiguous(boxes), shifts = torch::stable::contiguous(offset);
    const Tensor factors = mask ? torch::stable::contiguous(*mask) : corners;
    const bool mask_grad = offset_grad && mask.has_value();
    const auto zeros = [&](bool wanted, const Tensor& like) {
        return wanted ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(corners, {0});
    };
    // Sums are of the precision that boxes come in, which is not that of a half precision input.
    Tensor grad_input = zeros(false, input);
    if (input_grad) {
        grad_input = new_output(corners, {bins.batch, bins.channels, bins.map_height, bins.map_width}, channels_last);
        torch::stable::zero_(grad_input);
    }
    Tensor grad_offset = zeros(offset_grad, shifts), grad_mask = zeros(mask_grad, factors);
    check_cuda(launch_deform_roi_pool_backward(
                   dtype_of(input, "deform_roi_pool_backward"), bins, grads.const_data_ptr(), source.const_data_ptr(),
                   corners.const_data_ptr(), shifts.const_data_ptr(), mask ? factors.const_data_ptr() : nullptr,
                   spatial_scale, sampling_ratio, gamma, input_grad ? grad_input.mutable_data_ptr() : nullptr,
                   offset_grad ? grad_offset.mutable_data_ptr() : nullptr,
                   mask_grad ? grad_mask.mutable_data_ptr() : nullptr, deterministic, call.stream()),
               "deform_roi_pool_backward");
    return {grad_input, grad_offset, grad_mask};
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("deform_roi_pool", TORCH_BOX(&visionlab::deform_roi_pool_cuda));
    m.impl("deform_roi_pool_backward", TORCH_BOX(&visionlab::deform_roi_pool_backward_cuda));
}

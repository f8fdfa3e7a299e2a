#include <tuple>

#include "../../cuda/glue.h"
#include "../shifted_bins.h"

namespace visionlab {

// deform_ps_roi_pool.cu
int launch_deform_ps_roi_pool(DType dtype, const Bins& bins, const void* input, const void* boxes, const void* offset,
                              const void* mask, double spatial_scale, int64_t group_height, int64_t group_width,
                              int64_t sample_per_part, double gamma, void* output, void* stream);
int launch_deform_ps_roi_pool_backward(DType dtype, const Bins& bins, const void* grad, const void* input,
                                       const void* boxes, const void* offset, const void* mask, double spatial_scale,
                                       int64_t group_height, int64_t group_width, int64_t sample_per_part, double gamma,
                                       void* grad_input, void* grad_offset, void* grad_mask, bool deterministic,
                                       void* stream);

namespace {

// The arguments that both kernels take, in the layout that they read.
struct Arguments {
    bool channels_last;
    Tensor input, boxes, offset, mask;
    bool has_offset, has_mask;
    Bins bins;

    Arguments(const Tensor& map, const Tensor& corners, const std::optional<Tensor>& shifts,
              const std::optional<Tensor>& factors, int64_t height, int64_t width, int64_t groups)
        : channels_last(is_channels_last(map)),
          input(torch::stable::contiguous(map, format(channels_last))),
          boxes(torch::stable::contiguous(corners)),
          offset(shifts ? torch::stable::contiguous(*shifts) : boxes),
          mask(factors ? torch::stable::contiguous(*factors) : boxes),
          has_offset(shifts.has_value()),
          has_mask(factors.has_value()),
          bins{map.size(0),
               map.size(1),
               map.size(2),
               map.size(3),
               corners.size(0),
               map.size(1) / groups,
               height,
               width,
               has_offset ? offset.size(1) / 2 : 0,
               has_offset ? offset.size(2) : height,
               has_offset ? offset.size(3) : width,
               channels_last} {}

    const void* offsets() const { return has_offset ? offset.const_data_ptr() : nullptr; }
    const void* factors() const { return has_mask ? mask.const_data_ptr() : nullptr; }
};

Tensor deform_ps_roi_pool_cuda(const Tensor& input, const Tensor& boxes, std::optional<Tensor> offset,
                               std::optional<Tensor> mask, int64_t pooled_height, int64_t pooled_width,
                               double spatial_scale, int64_t group_height, int64_t group_width, int64_t sample_per_part,
                               double gamma) {
    const CudaCall call(input);
    const Arguments arguments(input, boxes, offset, mask, pooled_height, pooled_width, group_height * group_width);
    const Bins& bins = arguments.bins;
    Tensor output = new_output(input, {bins.boxes, bins.channels, bins.height, bins.width}, bins.channels_last);
    check_cuda(launch_deform_ps_roi_pool(dtype_of(input, "deform_ps_roi_pool"), bins, arguments.input.const_data_ptr(),
                                         arguments.boxes.const_data_ptr(), arguments.offsets(), arguments.factors(),
                                         spatial_scale, group_height, group_width, sample_per_part, gamma,
                                         output.mutable_data_ptr(), call.stream()),
               "deform_ps_roi_pool");
    return output;
}

std::tuple<Tensor, Tensor, Tensor> deform_ps_roi_pool_backward_cuda(
    const Tensor& grad, const Tensor& input, const Tensor& boxes, std::optional<Tensor> offset,
    std::optional<Tensor> mask, double spatial_scale, int64_t group_height, int64_t group_width,
    int64_t sample_per_part, double gamma, bool input_grad, bool offset_grad, bool deterministic) {
    const CudaCall call(input);
    const Arguments arguments(input, boxes, offset, mask, grad.size(2), grad.size(3), group_height * group_width);
    const Bins& bins = arguments.bins;
    const Tensor grads = torch::stable::contiguous(grad, format(bins.channels_last));
    const bool of_offset = offset_grad && arguments.has_offset, of_mask = offset_grad && arguments.has_mask;
    const auto zeros = [&](bool wanted, const Tensor& like) {
        return wanted ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(arguments.boxes, {0});
    };
    // Sums are of the precision that boxes come in, which is not that of a half precision input.
    Tensor grad_input = zeros(false, input);
    if (input_grad) {
        grad_input = new_output(arguments.boxes, {bins.batch, bins.input_channels, bins.map_height, bins.map_width},
                                bins.channels_last);
        torch::stable::zero_(grad_input);
    }
    Tensor grad_offset = zeros(of_offset, arguments.offset), grad_mask = zeros(of_mask, arguments.mask);
    check_cuda(
        launch_deform_ps_roi_pool_backward(
            dtype_of(input, "deform_ps_roi_pool_backward"), bins, grads.const_data_ptr(),
            arguments.input.const_data_ptr(), arguments.boxes.const_data_ptr(), arguments.offsets(),
            arguments.factors(), spatial_scale, group_height, group_width, sample_per_part, gamma,
            input_grad ? grad_input.mutable_data_ptr() : nullptr, of_offset ? grad_offset.mutable_data_ptr() : nullptr,
            of_mask ? grad_mask.mutable_data_ptr() : nullptr, deterministic, call.stream()),
        "deform_ps_roi_pool_backward");
    return {grad_input, grad_offset, grad_mask};
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("deform_ps_roi_pool", TORCH_BOX(&visionlab::deform_ps_roi_pool_cuda));
    m.impl("deform_ps_roi_pool_backward", TORCH_BOX(&visionlab::deform_ps_roi_pool_backward_cuda));
}

#include "deform_conv2d.h"

#include <array>

#include "../../cuda/glue.h"
#include "../deform_conv2d_passes.h"

namespace visionlab {

namespace {

// Runs the functors on the stream of a call.
struct CudaDevice {
    DType dtype;
    void* stream;

    void multiply(const Tensor& a, const Tensor& b, const Tensor& out) const {
        std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                          torch::stable::detail::from(out)};
        if (torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION) != 0) {
            fail("deform_conv2d: the matrix product failed");
        }
        torch::stable::detail::to<Tensor>(stack[0]);
    }
    void columns(const DeformTile& tile) const {
        check_cuda(launch_deform_columns(dtype, tile, stream), "deform_conv2d");
    }
    void gradients(const DeformTile& tile, bool deterministic) const {
        check_cuda(launch_deform_gradients(dtype, tile, deterministic, stream), "deform_conv2d_backward");
    }
    void add(const Tensor& from, Tensor& to) const {
        check_cuda(launch_deform_add(dtype, from.const_data_ptr(), to.mutable_data_ptr(), to.numel(), stream),
                   "deform_conv2d_backward");
    }
};

Tensor deform_conv2d_cuda(const Tensor& input, const Tensor& offset, const Tensor& weight,
                          const std::optional<Tensor>& mask, const std::optional<Tensor>& bias,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                          const std::vector<int64_t>& dilation) {
    const CudaCall call(input);
    return deform::forward_through_columns(deform::Call(input, offset, weight, mask, stride, padding, dilation), bias,
                                           CudaDevice{dtype_of(input, "deform_conv2d"), call.stream()});
}

deform::Gradients deform_conv2d_backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                              const Tensor& weight, const std::optional<Tensor>& mask,
                                              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                              const std::vector<int64_t>& dilation, bool for_input, bool for_offset,
                                              bool for_weight, bool deterministic) {
    const CudaCall call(input);
    return deform::backward_through_columns(deform::Call(input, offset, weight, mask, stride, padding, dilation), grad,
                                            for_input, for_offset, for_weight, deterministic,
                                            CudaDevice{dtype_of(input, "deform_conv2d_backward"), call.stream()});
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("deform_conv2d", TORCH_BOX(&visionlab::deform_conv2d_cuda));
    m.impl("deform_conv2d_backward", TORCH_BOX(&visionlab::deform_conv2d_backward_cuda));
}

// Deformable convolution as tensors: the shapes that its arguments imply, on every device.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "deform_conv2d.h"

namespace visionlab::deform {

// The arguments that both passes have.
struct Call {
    const Tensor& input;
    const Tensor& offset;
    const Tensor& weight;
    const std::optional<Tensor>& mask;
    DeformShape shape;

    Call(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation)
        : input(input), offset(offset), weight(weight), mask(mask) {
        const int64_t taps = weight.size(2) * weight.size(3);
        shape = {input.size(0),
                 input.size(1),
                 input.size(2),
                 input.size(3),
                 weight.size(0),
                 offset.size(2),
                 offset.size(3),
                 weight.size(2),
                 weight.size(3),
                 stride[0],
                 stride[1],
                 padding[0],
                 padding[1],
                 dilation[0],
                 dilation[1],
                 1,
                 offset.size(1) / (2 * taps)};
        if (weight.size(1) > 0) shape.groups = shape.channels / weight.size(1);
    }

    // Whether there is nothing to sample, so that the answer is the bias and the gradients are zero.
    bool empty() const {
        return shape.batch * shape.channels * shape.out_channels * shape.pixels() * shape.taps() == 0;
    }
};

template <class T, class Of>
Planes<T> planes(Of& tensor) {
    if (!tensor.defined()) return {nullptr, 0, 0, 0, 0};
    T* data;
    if constexpr (std::is_const_v<T>) {
        data = static_cast<T*>(tensor.const_data_ptr());
    } else {
        data = static_cast<T*>(tensor.mutable_data_ptr());
    }
    return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// The gradients of input, offset, weight and mask; those not asked for are empty.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline Tensor new_zeros_like(const Tensor& like) {
    Tensor zeros = new_output(like, {like.size(0), like.size(1), like.size(2), like.size(3)}, is_channels_last(like));
    torch::stable::zero_(zeros);
    return zeros;
}

inline Tensor no_gradient(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

}  // namespace visionlab::deform

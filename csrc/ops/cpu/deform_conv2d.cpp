// Deformable convolution on the CPU: the operators.
#include "deform_conv2d.h"

#include "../../scalar.h"
#include "../deform_conv2d_passes.h"

namespace visionlab {

namespace {

using deform::Call;

// Contiguous weights, in torch's order or channels-last.
Tensor dense(const Tensor& weight) { return torch::stable::contiguous(weight, format(is_channels_last(weight))); }

template <class T>
deform::Arguments<T> arguments(const Call& call, const Tensor& input, const Tensor& weight) {
    const Planes<const T> mask = call.mask ? deform::planes<const T>(*call.mask) : Planes<const T>{};
    return {call.shape,
            data<T>(input),
            data<T>(weight),
            is_channels_last(call.input),
            is_channels_last(weight),
            deform::planes<const T>(call.offset),
            mask};
}

// (groups, rows, depth) times (groups, depth, columns), each value summed in order.
template <class T>
void multiply(const Tensor& a, const Tensor& b, Tensor out) {
    const T *left = data<T>(a), *right = data<T>(b);
    T* answers = mutable_data<T>(out);
    const int64_t rows = a.size(1), depth = a.size(2), columns = b.size(2);
    for_each_index(a.size(0) * rows, [&](int64_t i) {
        const int64_t group = i / rows, row = i % rows;
        std::vector<Accumulate<T>> sums(columns);
        for (int64_t k = 0; k < depth; ++k) {
            const Accumulate<T> factor = load(left + group * a.stride(0) + row * a.stride(1) + k * a.stride(2));
            const T* values = right + group * b.stride(0) + k * b.stride(1);
            for (int64_t j = 0; j < columns; ++j) sums[j] += factor * load(values + j * b.stride(2));
        }
        T* answer = answers + group * out.stride(0) + row * out.stride(1);
        for (int64_t j = 0; j < columns; ++j) store(answer + j * out.stride(2), sums[j]);
    });
}

// Runs the functors of the CUDA kernels, one lane to a sample.
struct ScalarDevice {
    ScalarType dtype;

    void multiply(const Tensor& a, const Tensor& b, Tensor out) const {
        dispatch_floating("deform_conv2d", dtype, [&](auto zero) { visionlab::multiply<decltype(zero)>(a, b, out); });
    }
    static int64_t samples(const DeformTile& tile) { return tile.count * tile.shape.taps() * tile.shape.offset_groups; }
    void columns(const DeformTile& tile) const {
        dispatch_floating("deform_conv2d", dtype,
                          [&](auto zero) { for_each_index(samples(tile), DeformColumns<decltype(zero), 1>{tile, 1}); });
    }
    void gradients(DeformTile tile, bool deterministic) const {
        dispatch_floating("deform_conv2d_backward", dtype, [&](auto zero) {
            using T = decltype(zero);
            if (deterministic && tile.input_grad) {
                for_each_index(tile.shape.batch * tile.shape.channels, DeformInputGradientInOrder<T>{tile});
                tile.input_grad = nullptr;
            }
            for_each_index_in_order(samples(tile), DeformGradients<T>{tile, 1});
        });
    }
    void add(const Tensor& from, Tensor& to) const {
        dispatch_floating("deform_conv2d_backward", dtype, [&](auto zero) {
            using T = decltype(zero);
            for_each_index(to.numel(), DeformAdd<T>{data<T>(from), mutable_data<T>(to)});
        });
    }
};

}  // namespace

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                     const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
    const Call call(input, offset, weight, mask, stride, padding, dilation);
    if (simd::level() == simd::Level::scalar) {
        return deform::forward_through_columns(call, bias, ScalarDevice{input.scalar_type()});
    }
    const DeformShape& shape = call.shape;
    const bool channels_last = is_channels_last(input);
    const Tensor map = torch::stable::contiguous(input, format(channels_last)), kernel = dense(weight);
    Tensor output =
        new_output(input, {shape.batch, shape.out_channels, shape.out_height, shape.out_width}, channels_last);
    dispatch_floating("deform_conv2d", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const Tensor shift = bias ? torch::stable::contiguous(*bias) : Tensor();
        const T* shifts = bias ? data<T>(shift) : nullptr;
        T* values = mutable_data<T>(output);
        if (!call.empty()) {
            deform::forward(arguments<T>(call, map, kernel), shifts, values);
        } else {
            const int64_t stride = channels_last ? 1 : shape.pixels();
            for (int64_t i = 0; i < output.numel(); ++i) {
                values[i] = shifts ? shifts[i / stride % shape.out_channels] : T(0);
            }
        }
    });
    return output;
}

deform::Gradients deform_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                         const Tensor& weight, const std::optional<Tensor>& mask,
                                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                         const std::vector<int64_t>& dilation, bool for_input, bool for_offset,
                                         bool for_weight, bool deterministic) {
    const Call call(input, offset, weight, mask, stride, padding, dilation);
    if (simd::level() == simd::Level::scalar) {
        return deform::backward_through_columns(call, grad, for_input, for_offset, for_weight, deterministic,
                                                ScalarDevice{input.scalar_type()});
    }
    const bool channels_last = is_channels_last(input);
    const Tensor map = torch::stable::contiguous(input, format(channels_last)), kernel = dense(weight);
    const Tensor source = torch::stable::contiguous(grad, format(channels_last));
    Tensor input_grad = deform::no_gradient(input), offset_grad = input_grad, weight_grad = input_grad,
           mask_grad = input_grad;
    dispatch_floating("deform_conv2d_backward", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const deform::Arguments<T> all = arguments<T>(call, map, kernel);
        if (for_weight) {
            weight_grad = deform::new_zeros_like(kernel);
            if (!call.empty()) deform::weight_gradient(all, data<T>(source), mutable_data<T>(weight_grad));
        }
        if (for_input) input_grad = deform::new_zeros_like(map);
        Planes<T> offsets{}, masks{};
        if (for_offset) {
            offset_grad = deform::new_zeros_like(offset);
            offsets = deform::planes<T>(offset_grad);
            if (mask) {
                mask_grad = deform::new_zeros_like(*mask);
                masks = deform::planes<T>(mask_grad);
            }
        }
        if ((for_input || for_offset) && !call.empty()) {
            T* target = for_input ? mutable_data<T>(input_grad) : nullptr;
            deform::input_gradients(all, data<T>(source), target, offsets, masks);
        }
    });
    return {input_grad, offset_grad, weight_grad, mask_grad};
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("deform_conv2d", TORCH_BOX(&visionlab::deform_conv2d));
    m.impl("deform_conv2d_backward", TORCH_BOX(&visionlab::deform_conv2d_backward));
}

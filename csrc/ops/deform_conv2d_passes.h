// Both passes of the deformable convolution through whole columns, tile by tile. Where the functors and the matrix
// products run is a parameter: CUDA, or the CPU for VISIONLAB_SIMD=scalar.
#pragma once

#include "deform_conv2d_columns.h"
#include "deform_conv2d_tensors.h"

namespace visionlab::deform {

constexpr int64_t tile_bytes = 32 << 20;  // of columns

// (N, C, H, W) in channels-last order as (N * H * W, groups, C / groups).
inline Tensor rows(const Tensor& tensor, int64_t groups) {
    const Tensor last = torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
    const Tensor turned = torch::stable::transpose(torch::stable::transpose(last, 1, 2), 2, 3);
    return torch::stable::view(turned, {last.size(0) * last.size(2) * last.size(3), groups, last.size(1) / groups});
}

// (O, inner, h, w) as (groups, O / groups, taps * inner), contiguous.
inline Tensor kernel_rows(const Tensor& weight, const DeformShape& shape) {
    const Tensor flat = torch::stable::reshape(weight, {shape.out_channels, shape.inner(), shape.taps()});
    const Tensor turned = torch::stable::contiguous(torch::stable::transpose(flat, 1, 2));
    return torch::stable::view(turned, {shape.groups, shape.outer(), shape.taps() * shape.inner()});
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, ScalarType dtype) {
    return torch::stable::empty(size, dtype, std::nullopt, like.device());
}

// A slice of some pixels, groups first.
inline Tensor slice(Tensor rows, int64_t first, int64_t count) {
    return torch::stable::transpose(torch::stable::narrow(rows, 0, first, count), 0, 1);
}

// Calls function(tile, columns) for tiles of all pixels; columns are (groups, pixels, taps * inner).
template <class Function>
void for_each_tile(const Call& call, const Tensor& input, const Function& function) {
    const DeformShape& shape = call.shape;
    const int64_t pixels = shape.batch * shape.pixels(), depth = shape.taps() * shape.inner();
    const int64_t bytes = shape.groups * depth * static_cast<int64_t>(input.element_size());
    const int64_t most = std::min(pixels, std::max<int64_t>(tile_bytes / bytes, 1));
    Tensor buffer = empty(input, {most * shape.groups * depth}, input.scalar_type());
    const Planes<const void> mask = call.mask ? planes<const void>(*call.mask) : Planes<const void>{};
    for (int64_t first = 0; first < pixels; first += most) {
        const int64_t count = std::min(most, pixels - first);
        Tensor columns = torch::stable::view(torch::stable::narrow(buffer, 0, 0, count * shape.groups * depth),
                                             {shape.groups, count, depth});
        function(DeformTile{shape,
                            first,
                            count,
                            input.const_data_ptr(),
                            planes<const void>(call.offset),
                            mask,
                            columns.mutable_data_ptr(),
                            nullptr,
                            {},
                            {}},
                 columns);
    }
}

// Device offers multiply(a, b, out) for stacks of matrices, columns(tile), gradients(tile, deterministic) and
// add(from, to).
template <class Device>
Tensor forward_through_columns(const Call& call, const std::optional<Tensor>& bias, const Device& device) {
    const DeformShape& shape = call.shape;
    Tensor output = new_output(call.input, {shape.batch, shape.out_channels, shape.out_height, shape.out_width}, true);
    if (call.empty()) {
        torch::stable::zero_(output);
    } else {
        const Tensor input = torch::stable::contiguous(call.input, MemoryFormat::ChannelsLast);
        const Tensor kernel = torch::stable::transpose(kernel_rows(call.weight, shape), 1, 2);
        const Tensor answers = rows(output, shape.groups);
        for_each_tile(call, input, [&](const DeformTile& tile, const Tensor& columns) {
            device.columns(tile);
            device.multiply(columns, kernel, slice(answers, tile.first, tile.count));
        });
    }
    if (bias) {
        const Tensor shift = torch::stable::reshape(*bias, {1, shape.out_channels, 1, 1});
        output = torch::stable::subtract(output, shift, -1.0);
    }
    return torch::stable::contiguous(output, format(is_channels_last(call.input)));
}

template <class Device>
Gradients backward_through_columns(const Call& call, const Tensor& grad, bool for_input, bool for_offset,
                                   bool for_weight, bool deterministic, const Device& device) {
    const DeformShape& shape = call.shape;
    const ScalarType dtype = call.input.scalar_type();
    const ScalarType wide = dtype == ScalarType::Double ? dtype : ScalarType::Float;
    const Tensor none = no_gradient(call.input);
    Tensor offset_grad = for_offset ? new_zeros_like(call.offset) : none;
    Tensor mask_grad = for_offset && call.mask ? new_zeros_like(*call.mask) : none;
    const Tensor input = torch::stable::contiguous(call.input, MemoryFormat::ChannelsLast);
    Tensor sums = for_input ? empty(input, {shape.batch, shape.height, shape.width, shape.channels}, wide) : none;
    if (for_input) torch::stable::zero_(sums);
    const int64_t depth = shape.taps() * shape.inner();
    Tensor weight_sums = for_weight ? empty(input, {shape.groups, shape.outer(), depth}, wide) : none;
    if (for_weight) torch::stable::zero_(weight_sums);

    if (!call.empty()) {
        const Tensor grads = rows(grad, shape.groups), kernel = kernel_rows(call.weight, shape);
        const Tensor share = for_weight ? empty(input, {shape.groups, shape.outer(), depth}, dtype) : none;
        for_each_tile(call, input, [&](DeformTile tile, const Tensor& columns) {
            const Tensor of_tile = slice(grads, tile.first, tile.count);
            if (for_weight) {
                device.columns(tile);
                device.multiply(torch::stable::transpose(of_tile, 1, 2), columns, share);
                device.add(share, weight_sums);
            }
            if (!for_input && !for_offset) return;
            device.multiply(of_tile, kernel, columns);
            if (for_input) tile.input_grad = sums.mutable_data_ptr();
            if (for_offset) tile.offset_grad = planes<void>(offset_grad);
            if (for_offset && call.mask) tile.mask_grad = planes<void>(mask_grad);
            device.gradients(tile, deterministic);
        });
    }

    Tensor input_grad = none, weight_grad = none;
    if (for_input) {
        input_grad = new_output(call.input, {shape.batch, shape.channels, shape.height, shape.width},
                                is_channels_last(call.input));
        torch::stable::copy_(input_grad, torch::stable::transpose(torch::stable::transpose(sums, 2, 3), 1, 2));
    }
    if (for_weight) {
        weight_grad =
            new_output(call.weight, {shape.out_channels, shape.inner(), shape.kernel_height, shape.kernel_width},
                       is_channels_last(call.weight));
        const Tensor by_tap = torch::stable::view(
            weight_sums, {shape.out_channels, shape.kernel_height, shape.kernel_width, shape.inner()});
        torch::stable::copy_(weight_grad, torch::stable::transpose(torch::stable::transpose(by_tap, 2, 3), 1, 2));
    }
    return {input_grad, offset_grad, weight_grad, mask_grad};
}

}  // namespace visionlab::deform

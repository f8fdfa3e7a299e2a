// deform_roi_pool. All channels of a bin move together.
#include "../deform_roi_pool.h"

#include <tuple>

#include "../../scalar.h"
#include "../../tensors.h"
#include "shifted_bins.h"

namespace visionlab {

namespace {

template <class T>
void check_samples(const DeformRoIPoolGeometry<T>& geometry) {
    const Bins& bins = geometry.bins;
    if (std::min({bins.channels, bins.height, bins.width}) == 0) return;
    for (int64_t box = 0; box < bins.boxes; ++box) {
        if (geometry.bin(box, 0, 0, 0).image >= 0) continue;
        fail("deform_roi_pool: boxes: expected at most ", most_deform_samples,
             " samples along one side of a bin, got more in box ", box,
             "; clip boxes to the image or set sampling_ratio");
    }
}

Bins make_bins(const Tensor& input, const Tensor& offset, bool channels_last) {
    return {input.size(0),  input.size(1),  input.size(2),
            input.size(3),  offset.size(0), input.size(1),
            offset.size(2), offset.size(3), 1,
            offset.size(2), offset.size(3), channels_last};
}

}  // namespace

Tensor deform_roi_pool(const Tensor& input, const Tensor& boxes, const Tensor& offset, std::optional<Tensor> mask,
                       double spatial_scale, int64_t sampling_ratio, double gamma) {
    const bool channels_last = is_channels_last(input);
    const Bins bins = make_bins(input, offset, channels_last);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor corners = torch::stable::contiguous(boxes), shifts = torch::stable::contiguous(offset);
    const Tensor factors = mask ? torch::stable::contiguous(*mask) : Tensor();
    Tensor output = new_output(input, {bins.boxes, bins.channels, bins.height, bins.width}, channels_last);
    dispatch_floating("deform_roi_pool", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const DeformRoIPoolGeometry<T> geometry{bins,           data<T>(corners), data<T>(shifts), T(spatial_scale),
                                                sampling_ratio, T(gamma)};
        const T* factor = mask ? data<T>(factors) : nullptr;
        const BoxesByImage check("deform_roi_pool", geometry.boxes, bins.boxes, bins.batch);
        check_samples(geometry);
        if (simd::level() == simd::Level::scalar) {
            const PoolBins<T, DeformRoIPoolGeometry<T>> pool{geometry, data<T>(source), factor,
                                                             mutable_data<T>(output)};
            return for_each_index(bins.outputs(), pool);
        }
        const Scratch<T> copy(channels_last ? 0 : source.numel());
        if (!channels_last) to_channels_last(data<T>(source), bins, copy.data());
        pool_channels(geometry, channels_last ? data<T>(source) : copy.data(), factor, mutable_data<T>(output));
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor> deform_roi_pool_backward(const Tensor& grad, const Tensor& input,
                                                            const Tensor& boxes, const Tensor& offset,
                                                            std::optional<Tensor> mask, double spatial_scale,
                                                            int64_t sampling_ratio, double gamma, bool input_grad,
                                                            bool offset_grad, bool deterministic) {
    const bool channels_last = is_channels_last(input);
    const Bins bins = make_bins(input, offset, channels_last);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor grads = torch::stable::contiguous(grad, format(channels_last));
    const Tensor corners = torch::stable::contiguous(boxes), shifts = torch::stable::contiguous(offset);
    const Tensor factors = mask ? torch::stable::contiguous(*mask) : Tensor();
    const bool mask_grad = offset_grad && mask.has_value();
    Tensor grad_input =
        input_grad ? new_output(input, {bins.batch, bins.channels, bins.map_height, bins.map_width}, channels_last)
                   : torch::stable::new_empty(offset, {0});
    Tensor grad_offset =
        offset_grad ? torch::stable::new_zeros(offset, offset.sizes()) : torch::stable::new_empty(offset, {0});
    Tensor grad_mask =
        mask_grad ? torch::stable::new_zeros(factors, factors.sizes()) : torch::stable::new_empty(offset, {0});
    dispatch_floating("deform_roi_pool_backward", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        using Geometry = DeformRoIPoolGeometry<T>;
        const Geometry geometry{bins, data<T>(corners), data<T>(shifts), T(spatial_scale), sampling_ratio, T(gamma)};
        const T* factor = mask ? data<T>(factors) : nullptr;
        const BoxesByImage images("deform_roi_pool", geometry.boxes, bins.boxes, bins.batch);
        check_samples(geometry);
        T* into = mutable_data<T>(grad_input);
        T* into_offset = mutable_data<T>(grad_offset);
        T* into_mask = mask_grad ? mutable_data<T>(grad_mask) : nullptr;
        if (simd::level() == simd::Level::scalar) {
            if (input_grad) torch::stable::zero_(grad_input);
            if (input_grad && deterministic) {
                for_each_index(bins.batch * bins.channels,
                               SpreadBinsInOrder<T, Geometry>{geometry, data<T>(grads), factor, into});
            } else if (input_grad) {
                for_each_index_in_order(bins.outputs(),
                                        SpreadBins<T, Geometry>{geometry, data<T>(grads), factor, into});
            }
            if (!offset_grad) return;
            const MoveBins<T, Geometry> move{geometry,
                                             data<T>(grads),
                                             data<T>(source),
                                             factor,
                                             into_offset,
                                             into_mask,
                                             deterministic ? std::max<int64_t>(bins.channels, 1) : 16};
            return deterministic ? for_each_index(move.calls(), move) : for_each_index_in_order(move.calls(), move);
        }
        if (offset_grad) {
            const Scratch<T> copy(channels_last ? 0 : source.numel());
            if (!channels_last) to_channels_last(data<T>(source), bins, copy.data());
            move_channels(geometry, data<T>(grads), channels_last ? data<T>(source) : copy.data(), factor, into_offset,
                          into_mask);
        }
        if (input_grad) spread_channels(geometry, images, data<T>(grads), factor, into);
    });
    return {grad_input, grad_offset, grad_mask};
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("deform_roi_pool", TORCH_BOX(&visionlab::deform_roi_pool));
    m.impl("deform_roi_pool_backward", TORCH_BOX(&visionlab::deform_roi_pool_backward));
}

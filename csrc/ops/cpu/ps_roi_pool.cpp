// Position-sensitive RoIPool on the CPU.
#include "../ps_roi_pool.h"

#include "../../scalar.h"
#include "position_sensitive.h"

namespace visionlab {

namespace {

template <class T>
BinTaps<T> taps(const RoundedAxis<T>& axis, int64_t size) {
    BinTaps<T> result;
    for (int64_t bin = 0; bin < axis.bins; ++bin) {
        const Cells cells = ps_roi_pool_cells(axis, bin, size);
        for (int64_t cell = cells.begin; cell < cells.end; ++cell) {
            result.cells.push_back(cell);
            result.weights.push_back(T(1));
        }
        result.end_bin();
    }
    return result;
}

template <class T>
PSRoIs<T> make_rois(const T* boxes, const MapLayout& map, const MapLayout& pooled, T scale) {
    return PSRoIs<T>("ps_roi_pool", boxes, pooled.batch, map.batch, true, [&](const T* box, PSRoI<T>& roi) {
        roi.rows = taps(RoundedAxis<T>(box[2], box[4], scale, pooled.height, false), map.height);
        roi.columns = taps(RoundedAxis<T>(box[1], box[3], scale, pooled.width, false), map.width);
    });
}

}  // namespace

Tensor ps_roi_pool(const Tensor& input, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                   double spatial_scale) {
    check_classes("ps_roi_pool", input.size(1), pooled_height, pooled_width);
    const bool channels_last = is_channels_last(input);
    const MapLayout map{input.size(0), input.size(1), input.size(2), input.size(3), channels_last};
    const MapLayout pooled = ps_pooled(map, boxes.size(0), pooled_height, pooled_width);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(input, {pooled.batch, pooled.channels, pooled.height, pooled.width}, channels_last);
    dispatch_floating("ps_roi_pool", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const T scale = static_cast<T>(spatial_scale);
        const PSRoIs<T> rois = make_rois(data<T>(rows), map, pooled, scale);
        if (simd::level() == simd::Level::scalar) {
            for_each_index(pooled.count(), PSRoIPoolForward<T>{data<T>(source), data<T>(rows), mutable_data<T>(output),
                                                               map, pooled, scale});
        } else {
            ps_pool(data<T>(source), map, pooled, rois, mutable_data<T>(output));
        }
    });
    return output;
}

Tensor ps_roi_pool_backward(const Tensor& grad, const Tensor& boxes, int64_t batch, int64_t channels, int64_t height,
                            int64_t width, double spatial_scale, bool channels_last, bool deterministic) {
    check_classes("ps_roi_pool", channels, grad.size(2), grad.size(3));
    const MapLayout map{batch, channels, height, width, channels_last};
    const MapLayout pooled = ps_pooled(map, boxes.size(0), grad.size(2), grad.size(3));
    const Tensor values = torch::stable::contiguous(grad, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(grad, {batch, channels, height, width}, channels_last);
    dispatch_floating("ps_roi_pool_backward", grad.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const T scale = static_cast<T>(spatial_scale);
        const PSRoIs<T> rois = make_rois(data<T>(rows), map, pooled, scale);
        if (simd::level() != simd::Level::scalar) {
            ps_spread(data<T>(values), map, pooled, rois, mutable_data<T>(output));
        } else if (deterministic) {
            for_each_index(map.count(), PSRoIPoolBackwardInOrder<T>{data<T>(values), data<T>(rows),
                                                                    mutable_data<T>(output), map, pooled, scale});
        } else {
            torch::stable::zero_(output);
            for_each_index_in_order(pooled.count(), PSRoIPoolBackward<T>{data<T>(values), data<T>(rows),
                                                                         mutable_data<T>(output), map, pooled, scale});
        }
    });
    return output;
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("ps_roi_pool", TORCH_BOX(&visionlab::ps_roi_pool));
    m.impl("ps_roi_pool_backward", TORCH_BOX(&visionlab::ps_roi_pool_backward));
}

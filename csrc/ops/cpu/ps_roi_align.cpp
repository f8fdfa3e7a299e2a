// Position-sensitive RoIAlign on the CPU.
#include "../ps_roi_align.h"

#include "../../scalar.h"
#include "position_sensitive.h"

namespace visionlab {

namespace {

template <class T>
BinTaps<T> taps(const RoIAxis<T>& axis, int64_t bins, int64_t size, int64_t box) {
    if (!(axis.samples <= ps_roi_align_most_samples<T>)) {
        fail("ps_roi_align: boxes: expected at most ", ps_roi_align_most_samples<T>,
             " samples along one side of a bin, got more in box ", box,
             "; clip boxes to the image or set sampling_ratio");
    }
    BinTaps<T> result;
    for (int64_t bin = 0; bin < bins; ++bin) {
        for (int64_t i = 0; i < static_cast<int64_t>(axis.samples); ++i) {
            const LinearSample<T> sample(axis.position(bin, i), size);
            result.add(sample.low, sample.low_weight / axis.samples);
            result.add(sample.high, sample.high_weight / axis.samples);
        }
        result.end_bin();
    }
    return result;
}

template <class T>
PSRoIs<T> make_rois(const T* boxes, const MapLayout& map, const MapLayout& pooled, T scale, int64_t ratio) {
    return PSRoIs<T>("ps_roi_align", boxes, pooled.batch, map.batch, false, [&](const T* box, PSRoI<T>& roi) {
        const RoIAxis<T> y(box[2], box[4], scale, pooled.height, ratio, true);
        const RoIAxis<T> x(box[1], box[3], scale, pooled.width, ratio, true);
        roi.rows = taps(y, pooled.height, map.height, roi.index);
        roi.columns = taps(x, pooled.width, map.width, roi.index);
    });
}

}  // namespace

Tensor ps_roi_align(const Tensor& input, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                    double spatial_scale, int64_t sampling_ratio) {
    check_classes("ps_roi_align", input.size(1), pooled_height, pooled_width);
    const bool channels_last = is_channels_last(input);
    const MapLayout map{input.size(0), input.size(1), input.size(2), input.size(3), channels_last};
    const MapLayout pooled = ps_pooled(map, boxes.size(0), pooled_height, pooled_width);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(input, {pooled.batch, pooled.channels, pooled.height, pooled.width}, channels_last);
    dispatch_floating("ps_roi_align", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const T scale = static_cast<T>(spatial_scale);
        const PSRoIs<T> rois = make_rois(data<T>(rows), map, pooled, scale, sampling_ratio);
        if (simd::level() == simd::Level::scalar) {
            for_each_index(pooled.count(), PSRoIAlignForward<T>{data<T>(source), data<T>(rows), mutable_data<T>(output),
                                                                map, pooled, scale, sampling_ratio});
        } else {
            ps_pool(data<T>(source), map, pooled, rois, mutable_data<T>(output));
        }
    });
    return output;
}

Tensor ps_roi_align_backward(const Tensor& grad, const Tensor& boxes, int64_t batch, int64_t channels, int64_t height,
                             int64_t width, double spatial_scale, int64_t sampling_ratio, bool channels_last,
                             bool deterministic) {
    check_classes("ps_roi_align", channels, grad.size(2), grad.size(3));
    const MapLayout map{batch, channels, height, width, channels_last};
    const MapLayout pooled = ps_pooled(map, boxes.size(0), grad.size(2), grad.size(3));
    const Tensor values = torch::stable::contiguous(grad, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(grad, {batch, channels, height, width}, channels_last);
    dispatch_floating("ps_roi_align_backward", grad.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const T scale = static_cast<T>(spatial_scale);
        const PSRoIs<T> rois = make_rois(data<T>(rows), map, pooled, scale, sampling_ratio);
        if (simd::level() != simd::Level::scalar) {
            ps_spread(data<T>(values), map, pooled, rois, mutable_data<T>(output));
        } else if (deterministic) {
            for_each_index(map.count(),
                           PSRoIAlignBackwardInOrder<T>{data<T>(values), data<T>(rows), mutable_data<T>(output), map,
                                                        pooled, scale, sampling_ratio});
        } else {
            torch::stable::zero_(output);
            for_each_index_in_order(pooled.count(),
                                    PSRoIAlignBackward<T>{data<T>(values), data<T>(rows), mutable_data<T>(output), map,
                                                          pooled, scale, sampling_ratio});
        }
    });
    return output;
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("ps_roi_align", TORCH_BOX(&visionlab::ps_roi_align));
    m.impl("ps_roi_align_backward", TORCH_BOX(&visionlab::ps_roi_align_backward));
}

#include "../deform_ps_roi_pool.h"
#include "shifted_bins.cuh"

namespace visionlab {

namespace {

template <class T>
DeformPSRoIPoolGeometry<Accumulate<T>> make_geometry(const Bins& bins, const void* boxes, const void* offset,
                                                     double spatial_scale, int64_t group_height, int64_t group_width,
                                                     int64_t sample_per_part, double gamma) {
    using G = Accumulate<T>;
    return {bins,
            static_cast<const G*>(boxes),
            static_cast<const G*>(offset),
            G(spatial_scale),
            group_height,
            group_width,
            sample_per_part,
            G(gamma)};
}

}  // namespace

int launch_deform_ps_roi_pool(DType dtype, const Bins& bins, const void* input, const void* boxes, const void* offset,
                              const void* mask, double spatial_scale, int64_t group_height, int64_t group_width,
                              int64_t sample_per_part, double gamma, void* output, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto geometry =
            make_geometry<T>(bins, boxes, offset, spatial_scale, group_height, group_width, sample_per_part, gamma);
        return launch_pool<T>(geometry, input, mask, output, stream);
    });
}

int launch_deform_ps_roi_pool_backward(DType dtype, const Bins& bins, const void* grad, const void* input,
                                       const void* boxes, const void* offset, const void* mask, double spatial_scale,
                                       int64_t group_height, int64_t group_width, int64_t sample_per_part, double gamma,
                                       void* grad_input, void* grad_offset, void* grad_mask, bool deterministic,
                                       void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto geometry =
            make_geometry<T>(bins, boxes, offset, spatial_scale, group_height, group_width, sample_per_part, gamma);
        return launch_pool_backward<T>(geometry, grad, input, mask, grad_input, grad_offset, grad_mask, deterministic,
                                       stream);
    });
}

}  // namespace visionlab

#include "../deform_roi_pool.h"
#include "shifted_bins.cuh"

namespace visionlab {

namespace {

template <class T>
DeformRoIPoolGeometry<Accumulate<T>> make_geometry(const Bins& bins, const void* boxes, const void* offset,
                                                   double spatial_scale, int64_t sampling_ratio, double gamma) {
    using G = Accumulate<T>;
    return {bins,    static_cast<const G*>(boxes), static_cast<const G*>(offset), G(spatial_scale), sampling_ratio,
            G(gamma)};
}

}  // namespace

int launch_deform_roi_pool(DType dtype, const Bins& bins, const void* input, const void* boxes, const void* offset,
                           const void* mask, double spatial_scale, int64_t sampling_ratio, double gamma, void* output,
                           void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto geometry = make_geometry<T>(bins, boxes, offset, spatial_scale, sampling_ratio, gamma);
        return launch_pool<T>(geometry, input, mask, output, stream);
    });
}

int launch_deform_roi_pool_backward(DType dtype, const Bins& bins, const void* grad, const void* input,
                                    const void* boxes, const void* offset, const void* mask, double spatial_scale,
                                    int64_t sampling_ratio, double gamma, void* grad_input, void* grad_offset,
                                    void* grad_mask, bool deterministic, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto geometry = make_geometry<T>(bins, boxes, offset, spatial_scale, sampling_ratio, gamma);
        return launch_pool_backward<T>(geometry, grad, input, mask, grad_input, grad_offset, grad_mask, deterministic,
                                       stream);
    });
}

}  // namespace visionlab

// Launches the kernels of ../shifted_bins.h for the bins of one operator.
#pragma once

#include "../../cuda/launch.cuh"
#include "../shifted_bins.h"

namespace visionlab {

constexpr int64_t channels_per_thread = 16;  // of the sums that gradients of offsets are

template <class T, class Geometry>
int launch_pool(const Geometry& geometry, const void* input, const void* mask, void* output, void* stream) {
    using G = Accumulate<T>;
    const PoolBins<T, Geometry> pool{geometry, static_cast<const T*>(input), static_cast<const G*>(mask),
                                     static_cast<T*>(output)};
    return launch(geometry.bins.outputs(), pool, stream);
}

// A gradient that is null is not wanted; the others hold zeros.
template <class T, class Geometry>
int launch_pool_backward(const Geometry& geometry, const void* grad, const void* input, const void* mask,
                         void* grad_input, void* grad_offset, void* grad_mask, bool deterministic, void* stream) {
    using G = Accumulate<T>;
    const T* grads = static_cast<const T*>(grad);
    const G* factors = static_cast<const G*>(mask);
    G* into = static_cast<G*>(grad_input);
    if (into != nullptr) {
        const Bins& bins = geometry.bins;
        const int error = deterministic
                              ? launch(bins.batch * bins.input_channels,
                                       SpreadBinsInOrder<T, Geometry>{geometry, grads, factors, into}, stream)
                              : launch(bins.outputs(), SpreadBins<T, Geometry>{geometry, grads, factors, into}, stream);
        if (error != cudaSuccess) return error;
    }
    if ((grad_offset == nullptr && grad_mask == nullptr) || geometry.bins.channels == 0) return cudaSuccess;
    const MoveBins<T, Geometry> move{geometry,
                                     grads,
                                     static_cast<const T*>(input),
                                     factors,
                                     static_cast<G*>(grad_offset),
                                     static_cast<G*>(grad_mask),
                                     deterministic ? geometry.bins.channels : channels_per_thread};
    return launch(move.calls(), move, stream);
}

}  // namespace visionlab

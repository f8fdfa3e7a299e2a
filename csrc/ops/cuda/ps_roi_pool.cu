// Position-sensitive RoIPool on CUDA: one thread per bin forward; backward one per bin with atomics, or one per cell of
// the map in order.
#include "../../cuda/launch.cuh"
#include "../ps_roi_pool.h"
#include "ps_roi_pool.h"

namespace visionlab {

int cuda_ps_roi_pool(DType dtype, const void* input, const void* boxes, void* output, const MapLayout& map,
                     const MapLayout& pooled, double scale, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = Accumulate<T>;
        const PSRoIPoolForward<T> pool{
            static_cast<const T*>(input), static_cast<const A*>(boxes), static_cast<T*>(output), map, pooled,
            static_cast<A>(scale)};
        return launch(pooled.count(), pool, stream);
    });
}

int cuda_ps_roi_pool_backward(DType dtype, const void* grad, const void* boxes, void* output, const MapLayout& map,
                              const MapLayout& pooled, double scale, bool in_order, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) -> int {
        using T = decltype(zero);
        using A = Accumulate<T>;
        const T* grads = static_cast<const T*>(grad);
        const A* rows = static_cast<const A*>(boxes);
        T* sums = static_cast<T*>(output);
        if (in_order) {
            const PSRoIPoolBackwardInOrder<T> gather{grads, rows, sums, map, pooled, static_cast<A>(scale)};
            return launch(map.count(), gather, stream);
        }
        const PSRoIPoolBackward<T> spread{grads, rows, sums, map, pooled, static_cast<A>(scale)};
        return launch(pooled.count(), spread, stream);
    });
}

}  // namespace visionlab

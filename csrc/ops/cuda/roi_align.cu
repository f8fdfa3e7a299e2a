#include "../../cuda/launch.cuh"
#include "../roi_align.h"

namespace visionlab {

int launch_roi_align(DType dtype, const RoIAlignCall& call, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        return with_width<T>(call, [&](auto width) {
            const RoIAlignForward<T, decltype(width)::value> functor{{call}};
            return launch(functor.layout.bins(), functor, stream);
        });
    });
}

// Adds to maps in the type that values of `dtype` are summed in.
int launch_roi_align_backward(DType dtype, const RoIAlignCall& call, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        const RoIAlignBackward<decltype(zero)> functor(call);
        return launch(functor.grads.bins(), functor, stream);
    });
}

int launch_roi_align_gather(DType dtype, const RoIAlignCall& call, int64_t level, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        return with_width<T>(call, [&](auto width) {
            const RoIAlignGather<T, decltype(width)::value> functor{{call}, level};
            return launch(functor.layout.cells(level), functor, stream);
        });
    });
}

}  // namespace visionlab

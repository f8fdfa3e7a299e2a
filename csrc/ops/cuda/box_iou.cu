#include "../../cuda/launch.cuh"
#include "../box_iou.h"

namespace visionlab {

int launch_box_iou(DType dtype, const void* boxes1, const void* boxes2, int64_t batch, int64_t rows, int64_t columns,
                   int64_t format, void* output, void* stream) {
    const auto run_as = [&](auto zero) {
        using T = decltype(zero);
        const BoxIoU<T> task{static_cast<const T*>(boxes1), static_cast<const T*>(boxes2), rows, columns, format,
                             static_cast<T*>(output)};
        return launch(batch * rows * columns, task, stream);
    };
    return dtype == DType::float64 ? run_as(double{}) : run_as(float{});
}

int launch_box_iou_backward(DType dtype, const void* grad, const int64_t* strides, const void* boxes,
                            const void* others, int64_t batch, int64_t rows, int64_t columns, int64_t format,
                            void* output, void* stream) {
    const auto run_as = [&](auto zero) {
        using T = decltype(zero);
        const BoxIoUBackward<T> task{
            static_cast<const T*>(grad),   strides[0], strides[1], strides[2], static_cast<const T*>(boxes),
            static_cast<const T*>(others), rows,       columns,    format,     static_cast<T*>(output)};
        return launch(batch * rows, task, stream);
    };
    return dtype == DType::float64 ? run_as(double{}) : run_as(float{});
}

}  // namespace visionlab

#include "../../cuda/glue.h"

namespace visionlab {

// box_iou.cu
int launch_box_iou(DType dtype, const void* boxes1, const void* boxes2, int64_t batch, int64_t rows, int64_t columns,
                   int64_t format, void* output, void* stream);
int launch_box_iou_backward(DType dtype, const void* grad, const int64_t* strides, const void* boxes,
                            const void* others, int64_t batch, int64_t rows, int64_t columns, int64_t format,
                            void* output, void* stream);

namespace {

Tensor box_iou_cuda(const Tensor& boxes1, const Tensor& boxes2, int64_t format) {
    const CudaCall call(boxes1);
    const Tensor first = torch::stable::contiguous(boxes1), second = torch::stable::contiguous(boxes2);
    const int64_t batch = boxes1.size(0), rows = boxes1.size(1), columns = boxes2.size(1);
    Tensor output = new_output(boxes1, {batch, rows, columns}, false);
    check_cuda(launch_box_iou(dtype_of(boxes1, "box_iou"), first.const_data_ptr(), second.const_data_ptr(), batch, rows,
                              columns, format, output.mutable_data_ptr(), call.stream()),
               "box_iou");
    return output;
}

Tensor box_iou_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& others, int64_t format) {
    const CudaCall call(boxes);
    const Tensor first = torch::stable::contiguous(boxes), second = torch::stable::contiguous(others);
    const int64_t batch = boxes.size(0), rows = boxes.size(1), columns = others.size(1);
    const int64_t strides[3] = {grad.stride(0), grad.stride(1), grad.stride(2)};
    Tensor output = new_output(boxes, {batch, rows, 4}, false);
    check_cuda(launch_box_iou_backward(dtype_of(boxes, "box_iou_backward"), grad.const_data_ptr(), strides,
                                       first.const_data_ptr(), second.const_data_ptr(), batch, rows, columns, format,
                                       output.mutable_data_ptr(), call.stream()),
               "box_iou_backward");
    return output;
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("box_iou", TORCH_BOX(&visionlab::box_iou_cuda));
    m.impl("box_iou_backward", TORCH_BOX(&visionlab::box_iou_backward_cuda));
}

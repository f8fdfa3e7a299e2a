#include <tuple>

#include "../../cuda/glue.h"
#include "nms.h"

namespace visionlab {

// soft_nms.cu
int launch_soft_nms(DType dtype, const void* boxes, const void* scores, int64_t count, double iou_threshold,
                    double sigma, double score_threshold, int64_t method, void* read, void* current, int64_t* keep,
                    void* lowered, int64_t* total, void* stream);

namespace {

std::tuple<Tensor, Tensor> soft_nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold, double sigma,
                                         double score_threshold, int64_t method) {
    const CudaCall call(boxes);
    const int64_t count = boxes.size(0);
    const Tensor corners = torch::stable::contiguous(boxes), given = torch::stable::contiguous(scores);
    Tensor read = torch::stable::new_empty(boxes, {5 * count}), current = torch::stable::new_empty(boxes, {count});
    Tensor keep = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
    Tensor lowered = torch::stable::new_empty(boxes, {count});
    Tensor total = torch::stable::new_empty(boxes, {}, ScalarType::Long);
    check_cuda(launch_soft_nms(dtype_of(boxes, "soft_nms"), corners.const_data_ptr(), given.const_data_ptr(), count,
                               iou_threshold, sigma, score_threshold, method, read.mutable_data_ptr(),
                               current.mutable_data_ptr(), mutable_data<int64_t>(keep), lowered.mutable_data_ptr(),
                               mutable_data<int64_t>(total), call.stream()),
               "soft_nms");
    int64_t found = 0;
    check_cuda(read_count(data<int64_t>(total), &found, call.stream()), "soft_nms");
    return {torch::stable::narrow(keep, 0, 0, found), torch::stable::narrow(lowered, 0, 0, found)};
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) { m.impl("soft_nms", TORCH_BOX(&visionlab::soft_nms_cuda)); }

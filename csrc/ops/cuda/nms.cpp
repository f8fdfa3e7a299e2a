#include "nms.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "../../cuda/glue.h"
#include "../nms.h"

namespace visionlab {

namespace {

// Boxes in order of score; of equal scores the first comes first.
Tensor order_of(const Tensor& scores) {
    using torch::stable::detail::from;
    std::array<StableIValue, 4> stack{from(scores), from(std::optional<bool>(true)), from(int64_t(-1)), from(true)};
    if (torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION) != 0) fail("nms: sort failed");
    const Tensor values = torch::stable::detail::to<Tensor>(stack[0]);
    return torch::stable::detail::to<Tensor>(stack[1]);
}

struct Kept {
    Tensor indices, count;
};

// Queues all work. The answer has `limit` indices, of which `count` are kept boxes.
Kept queue(const char* name, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
           double threshold, int64_t limit, bool pad, const CudaCall& device) {
    const int64_t count = boxes.size(0), words = (count + word_bits - 1) / word_bits;
    const int64_t rows = nms_rows(count, words);
    const Tensor corners = torch::stable::contiguous(boxes), ranks = torch::stable::contiguous(scores);
    const Tensor order = order_of(ranks);
    const auto longs = [&](int64_t size) { return torch::stable::new_empty(boxes, {size}, ScalarType::Long); };
    std::optional<Tensor> groups, sorted_groups;
    if (idxs) groups = torch::stable::contiguous(*idxs), sorted_groups = longs(count);
    Tensor sorted = torch::stable::new_empty(boxes, {5 * count});
    Tensor mask = longs(rows * words), removed = longs(words), output = longs(limit);
    Tensor total = torch::stable::new_empty(boxes, {}, ScalarType::Long);
    const NmsCall call{dtype_of(boxes, name),
                       corners.const_data_ptr(),
                       ranks.const_data_ptr(),
                       groups ? data<int64_t>(*groups) : nullptr,
                       data<int64_t>(order),
                       count,
                       words,
                       threshold,
                       limit,
                       pad,
                       sorted.mutable_data_ptr(),
                       sorted_groups ? mutable_data<int64_t>(*sorted_groups) : nullptr,
                       static_cast<Word*>(mask.mutable_data_ptr()),
                       rows,
                       static_cast<Word*>(removed.mutable_data_ptr()),
                       mutable_data<int64_t>(output),
                       mutable_data<int64_t>(total)};
    check_cuda(launch_nms(call, device.stream()), name);
    return {output, total};
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs, double iou_threshold) {
    const CudaCall device(boxes);
    const Kept kept = queue("nms", boxes, scores, idxs, iou_threshold, boxes.size(0), false, device);
    int64_t count = 0;
    check_cuda(read_count(data<int64_t>(kept.count), &count, device.stream()), "nms");
    Tensor indices = kept.indices;
    return torch::stable::narrow(indices, 0, 0, count);
}

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                                           int64_t max_output) {
    const CudaCall device(boxes);
    const Kept kept = queue("nms_padded", boxes, scores, std::nullopt, iou_threshold, max_output, true, device);
    return {kept.indices, kept.count};
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("nms", TORCH_BOX(&visionlab::nms_cuda));
    m.impl("nms_padded", TORCH_BOX(&visionlab::nms_padded_cuda));
}

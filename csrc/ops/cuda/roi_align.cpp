#include "../../cuda/glue.h"
#include "../roi_align_tensors.h"

namespace visionlab {

// roi_align.cu
int launch_roi_align(DType dtype, const RoIAlignCall& call, void* stream);
int launch_roi_align_backward(DType dtype, const RoIAlignCall& call, void* stream);
int launch_roi_align_gather(DType dtype, const RoIAlignCall& call, int64_t level, void* stream);

namespace {

Tensor pool_maps(const char* name, const std::vector<Tensor>& features, const Tensor& boxes, const Tensor* levels,
                 const RoIPooling& pooling) {
    const CudaCall call(features[0]);
    const bool channels_last = is_channels_last(features[0]);
    const std::vector<Tensor> maps = in_format(features, channels_last);
    const RoIBoxes rois(boxes, levels);
    Tensor output =
        new_output(maps[0], {boxes.size(0), pooling.channels, pooling.height, pooling.width}, channels_last);
    check_cuda(launch_roi_align(dtype_of(output, name), describe(name, maps, rois, pooling, channels_last, output),
                                call.stream()),
               name);
    return output;
}

std::vector<Tensor> spread_maps(const char* name, const Tensor& grad, const Tensor& boxes, const Tensor* levels,
                                const RoIPooling& pooling, bool channels_last, bool deterministic) {
    const CudaCall call(grad);
    const Tensor source = torch::stable::contiguous(grad, format(channels_last));
    const RoIBoxes rois(boxes, levels);
    const ScalarType dtype = grad.scalar_type(), summed = boxes.scalar_type();
    std::vector<Tensor> maps;
    for (const RoILevel& level : pooling.levels) {
        maps.push_back(torch::stable::empty({pooling.batch, pooling.channels, level.height, level.width},
                                            deterministic ? dtype : summed, std::nullopt, grad.device(), std::nullopt,
                                            format(channels_last)));
        if (!deterministic) torch::stable::zero_(maps.back());
    }
    const RoIAlignCall task = describe(name, maps, rois, pooling, channels_last, source);
    if (deterministic) {
        for (int64_t level = 0; level < task.maps.count; ++level) {
            check_cuda(launch_roi_align_gather(dtype_of(grad, name), task, level, call.stream()), name);
        }
        return maps;
    }
    check_cuda(launch_roi_align_backward(dtype_of(grad, name), task, call.stream()), name);
    if (dtype != summed) {
        for (Tensor& map : maps) map = torch::stable::to(map, dtype);
    }
    return maps;
}

Tensor roi_align_cuda(const Tensor& input, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                      double spatial_scale, int64_t sampling_ratio, bool aligned) {
    const RoIPooling pooling =
        describe_pooling({input}, {spatial_scale}, pooled_height, pooled_width, sampling_ratio, aligned);
    return pool_maps("roi_align", {input}, boxes, nullptr, pooling);
}

Tensor roi_align_backward_cuda(const Tensor& grad, const Tensor& boxes, int64_t batch, int64_t channels, int64_t height,
                               int64_t width, double spatial_scale, int64_t sampling_ratio, bool aligned,
                               bool channels_last, bool deterministic) {
    const RoIPooling pooling{batch,          channels, {{height, width, spatial_scale}}, grad.size(2), grad.size(3),
                             sampling_ratio, aligned};
    return spread_maps("roi_align_backward", grad, boxes, nullptr, pooling, channels_last, deterministic)[0];
}

Tensor multi_scale_roi_align_cuda(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& levels,
                                  int64_t pooled_height, int64_t pooled_width, const std::vector<double>& scales,
                                  int64_t sampling_ratio, bool aligned) {
    const RoIPooling pooling = describe_pooling(features, scales, pooled_height, pooled_width, sampling_ratio, aligned);
    return pool_maps("multi_scale_roi_align", features, boxes, &levels, pooling);
}

std::vector<Tensor> multi_scale_roi_align_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& levels,
                                                        int64_t batch, int64_t channels,
                                                        const std::vector<int64_t>& heights,
                                                        const std::vector<int64_t>& widths,
                                                        const std::vector<double>& scales, int64_t sampling_ratio,
                                                        bool aligned, bool channels_last, bool deterministic) {
    RoIPooling pooling{batch, channels, {}, grad.size(2), grad.size(3), sampling_ratio, aligned};
    for (size_t i = 0; i < scales.size(); ++i) pooling.levels.push_back({heights[i], widths[i], scales[i]});
    return spread_maps("multi_scale_roi_align_backward", grad, boxes, &levels, pooling, channels_last, deterministic);
}

}  // namespace

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CUDA, m) {
    m.impl("roi_align", TORCH_BOX(&visionlab::roi_align_cuda));
    m.impl("roi_align_backward", TORCH_BOX(&visionlab::roi_align_backward_cuda));
    m.impl("multi_scale_roi_align", TORCH_BOX(&visionlab::multi_scale_roi_align_cuda));
    m.impl("multi_scale_roi_align_backward", TORCH_BOX(&visionlab::multi_scale_roi_align_backward_cuda));
}

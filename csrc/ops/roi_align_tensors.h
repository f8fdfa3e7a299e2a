// The tensors of a pooling from one map or from a pyramid, as the kernels of all devices take them.
#pragma once

#include <optional>
#include <vector>

#include "../tensors.h"
#include "roi_align.h"

namespace visionlab {

// One map of a pyramid, or the only map.
struct RoILevel {
    int64_t height, width;
    double scale;
    int64_t area() const { return height * width; }
};

struct RoIPooling {
    int64_t batch, channels;
    std::vector<RoILevel> levels;
    int64_t height, width;  // bins
    int64_t sampling_ratio;
    bool aligned;
    int64_t bins() const { return height * width; }
};

inline RoIPooling describe_pooling(const std::vector<Tensor>& features, const std::vector<double>& scales,
                                   int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
    RoIPooling pooling{features[0].size(0), features[0].size(1), {},     pooled_height,
                       pooled_width,        sampling_ratio,      aligned};
    for (size_t i = 0; i < features.size(); ++i) {
        pooling.levels.push_back({features[i].size(2), features[i].size(3), scales[i]});
    }
    return pooling;
}

// The boxes and the level of each; there may be no levels where there is one map.
struct RoIBoxes {
    Tensor boxes;
    std::optional<Tensor> levels;

    RoIBoxes(const Tensor& boxes, const Tensor* levels) : boxes(torch::stable::contiguous(boxes)) {
        if (levels != nullptr) this->levels = torch::stable::contiguous(*levels);
    }
    int64_t count() const { return boxes.size(0); }
    const int64_t* level_data() const { return levels ? data<int64_t>(*levels) : nullptr; }
};

inline std::vector<Tensor> in_format(const std::vector<Tensor>& tensors, bool channels_last) {
    std::vector<Tensor> result;
    for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor, format(channels_last)));
    return result;
}

// The call as the functors take it; `pooled` are the bins or their gradient.
inline RoIAlignCall describe(const char* name, const std::vector<Tensor>& maps, const RoIBoxes& rois,
                             const RoIPooling& pooling, bool channels_last, const Tensor& pooled) {
    if (maps.size() > most_roi_levels) {
        fail(name, ": expected at most ", most_roi_levels, " levels, got ", maps.size());
    }
    RoIAlignCall call{};
    call.maps.count = static_cast<int64_t>(maps.size());
    for (size_t i = 0; i < maps.size(); ++i) {
        call.maps.values[i] = const_cast<void*>(maps[i].const_data_ptr());
        call.maps.height[i] = pooling.levels[i].height;
        call.maps.width[i] = pooling.levels[i].width;
        call.maps.scale[i] = pooling.levels[i].scale;
    }
    call.boxes = rois.boxes.const_data_ptr();
    call.levels = rois.level_data();
    call.rois = rois.count();
    call.batch = pooling.batch;
    call.channels = pooling.channels;
    call.height = pooling.height;
    call.width = pooling.width;
    call.sampling_ratio = pooling.sampling_ratio;
    call.aligned = pooling.aligned;
    call.channels_last = channels_last;
    call.pooled = const_cast<void*>(pooled.const_data_ptr());
    return call;
}

}  // namespace visionlab

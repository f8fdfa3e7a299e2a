// Where RoIAlign samples (He et al. 2017, Mask R-CNN, arXiv:1703.06870) along one axis: the arithmetic of all devices.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define VISIONLAB_HOST_DEVICE __host__ __device__
#else
#define VISIONLAB_HOST_DEVICE
#endif

namespace visionlab {

// One side of a RoI on the feature map, cut into bins of `samples` samples each.
template <class T>
struct RoIAxis {
    T start;
    T bin;
    T samples;  // a whole number; kept as T because a wild RoI asks for more than an integer holds

    // `begin` and `end` are the side of the box in the image. An aligned RoI puts pixel centers at half-integers; the
    // older form does not, and makes each side at least one cell long.
    VISIONLAB_HOST_DEVICE RoIAxis(T begin, T end, T scale, int64_t bins, int64_t sampling_ratio, bool aligned) {
        const T shift = aligned ? T(0.5) : T(0);
        start = begin * scale - shift;
        T length = end * scale - shift - start;
        if (!aligned && length < T(1)) length = T(1);
        bin = length / T(bins);
        samples = sampling_ratio > 0 ? T(sampling_ratio) : std::ceil(bin);
        if (!(samples > T(0))) samples = T(0);
    }

    VISIONLAB_HOST_DEVICE T position(int64_t at_bin, int64_t sample) const {
        return start + T(at_bin) * bin + (T(sample) + T(0.5)) * bin / samples;
    }
};

// The two cells that a sample lies between and the weight of each; both weights are 0 outside the map.
template <class T>
struct LinearSample {
    int64_t low = 0, high = 0;
    T low_weight = 0, high_weight = 0;

    VISIONLAB_HOST_DEVICE LinearSample(T position, int64_t size) {
        if (!(position >= T(-1) && position <= T(size))) return;
        if (position < T(0)) position = T(0);
        low = static_cast<int64_t>(position);
        if (low >= size - 1) {
            low = high = size - 1;
            low_weight = T(1);
            return;
        }
        high = low + 1;
        high_weight = position - T(low);
        low_weight = T(1) - high_weight;
    }
};

}  // namespace visionlab

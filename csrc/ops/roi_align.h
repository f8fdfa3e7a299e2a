// RoIAlign (He et al. 2017, Mask R-CNN, arXiv:1703.06870) from one map or from a pyramid: the arithmetic of all
// devices.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../device.h"

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

    VISIONLAB_HOST_DEVICE bool outside() const { return low_weight + high_weight == T(0); }

    VISIONLAB_HOST_DEVICE T weight_of(int64_t cell) const {
        return (cell == low ? low_weight : T(0)) + (cell == high ? high_weight : T(0));
    }
};

constexpr int most_roi_levels = 8;
constexpr int64_t most_roi_samples = 1 << 16;  // along one side of a bin

// The maps of a pyramid, or the only map.
struct RoIMaps {
    void* values[most_roi_levels];
    int64_t height[most_roi_levels], width[most_roi_levels];
    double scale[most_roi_levels];
    int64_t count;
};

// What pooling and its gradient take. `boxes` are in Accumulate<T>; `levels` is null where there is one map.
struct RoIAlignCall {
    RoIMaps maps;
    const void* boxes;
    const int64_t* levels;
    int64_t rois, batch, channels, height, width, sampling_ratio;
    bool aligned, channels_last;
    void* pooled;  // or its gradient
};

// Channels that are computed together; their values are read in one piece.
template <class T, int Width>
struct alignas(sizeof(T) * Width) Pack {
    T values[Width];
};

// How many channels to compute together: 16 bytes of them where they lie side by side, and aligned.
inline int pack_width(const RoIAlignCall& call, int64_t element_size) {
    const int64_t width = 16 / element_size;
    if (!call.channels_last || call.channels % width != 0) return 1;
    bool aligned = reinterpret_cast<std::uintptr_t>(call.pooled) % 16 == 0;
    for (int64_t i = 0; i < call.maps.count; ++i) {
        aligned = aligned && reinterpret_cast<std::uintptr_t>(call.maps.values[i]) % 16 == 0;
    }
    return aligned ? static_cast<int>(width) : 1;
}

// A RoI on its map. One that is not valid reads nothing, and no value of it was made an integer.
template <class A>
struct RoIPlace {
    bool valid;
    int64_t image, level;
    RoIAxis<A> y, x;

    VISIONLAB_HOST_DEVICE RoIPlace(const RoIAlignCall& call, int64_t roi)
        : RoIPlace(call, static_cast<const A*>(call.boxes) + 5 * roi, call.levels == nullptr ? 0 : call.levels[roi]) {}

  private:
    VISIONLAB_HOST_DEVICE RoIPlace(const RoIAlignCall& call, const A* box, int64_t at)
        : valid(at >= 0 && at < call.maps.count),
          image(0),
          level(valid ? at : 0),
          y(box[2], box[4], static_cast<A>(call.maps.scale[level]), call.height, call.sampling_ratio, call.aligned),
          x(box[1], box[3], static_cast<A>(call.maps.scale[level]), call.width, call.sampling_ratio, call.aligned) {
        for (int i = 0; i < 5; ++i) valid = valid && box[i] - box[i] == A(0);  // finite
        valid = valid && box[0] >= A(0) && box[0] < A(call.batch);
        valid = valid && y.samples <= A(most_roi_samples) && x.samples <= A(most_roi_samples);
        if (valid) image = static_cast<int64_t>(box[0]);
    }
};

// Where things lie. Calls are numbered in the order of memory, so that neighboring threads work on neighboring values.
template <class T, int Width>
struct RoIAlignLayout {
    using P = Pack<T, Width>;
    RoIAlignCall call;

    // Values (outer, channels, rows, columns) or, channels-last, (outer, rows, columns, channels).
    VISIONLAB_HOST_DEVICE int64_t offset(int64_t outer, int64_t channel, int64_t row, int64_t column, int64_t rows,
                                         int64_t columns) const {
        return call.channels_last ? ((outer * rows + row) * columns + column) * call.channels + channel
                                  : ((outer * call.channels + channel) * rows + row) * columns + column;
    }

    VISIONLAB_HOST_DEVICE P* bin(int64_t roi, int64_t channel, int64_t i, int64_t j) const {
        return reinterpret_cast<P*>(static_cast<T*>(call.pooled) + offset(roi, channel, i, j, call.height, call.width));
    }

    VISIONLAB_HOST_DEVICE P* cell(int64_t level, int64_t image, int64_t channel, int64_t y, int64_t x) const {
        return reinterpret_cast<P*>(static_cast<T*>(call.maps.values[level]) +
                                    offset(image, channel, y, x, call.maps.height[level], call.maps.width[level]));
    }

    // Calls function(outer, first channel, row, column) for number `index`.
    template <class Function>
    VISIONLAB_HOST_DEVICE void at(int64_t index, int64_t rows, int64_t columns, const Function& function) const {
        const int64_t packs = call.channels / Width;
        int64_t channel = 0;
        if (call.channels_last) channel = index % packs * Width, index /= packs;
        const int64_t column = index % columns;
        index /= columns;
        const int64_t row = index % rows;
        index /= rows;
        if (!call.channels_last) channel = index % call.channels, index /= call.channels;
        function(index, channel, row, column);
    }

    // How many calls all bins take, and all cells of a level.
    int64_t bins() const { return call.rois * call.height * call.width * (call.channels / Width); }
    int64_t cells(int64_t level) const {
        return call.batch * call.maps.height[level] * call.maps.width[level] * (call.channels / Width);
    }
};

// Calls function(row, column, weight) for each cell that a sample of the bin (i, j) reads. Cells of weight 0 are not
// read: what they hold, NaN too, does not count.
template <class A, class Function>
VISIONLAB_HOST_DEVICE void for_each_cell(const RoIAlignCall& call, const RoIPlace<A>& roi, int64_t i, int64_t j,
                                         const Function& function) {
    const int64_t rows = static_cast<int64_t>(roi.y.samples), columns = static_cast<int64_t>(roi.x.samples);
    const A count = roi.y.samples * roi.x.samples;
    for (int64_t row = 0; row < rows; ++row) {
        const LinearSample<A> y(roi.y.position(i, row), call.maps.height[roi.level]);
        if (y.outside()) continue;
        for (int64_t column = 0; column < columns; ++column) {
            const LinearSample<A> x(roi.x.position(j, column), call.maps.width[roi.level]);
            const A low = x.low_weight / count, high = x.high_weight / count;
            if (y.low_weight * low != A(0)) function(y.low, x.low, y.low_weight * low);
            if (y.low_weight * high != A(0)) function(y.low, x.high, y.low_weight * high);
            if (y.high_weight * low != A(0)) function(y.high, x.low, y.high_weight * low);
            if (y.high_weight * high != A(0)) function(y.high, x.high, y.high_weight * high);
        }
    }
}

// Pools `Width` channels of one bin. A RoI that is not valid gives NaN.
template <class T, int Width>
struct RoIAlignForward {
    using A = Accumulate<T>;
    RoIAlignLayout<T, Width> layout;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const RoIAlignCall& call = layout.call;
        layout.at(index, call.height, call.width, [&](int64_t k, int64_t channel, int64_t i, int64_t j) {
            const RoIPlace<A> roi(call, k);
            A sums[Width];
            for (A& sum : sums) sum = roi.valid ? A(0) : A(NAN);
            if (roi.valid) {
                for_each_cell(call, roi, i, j, [&](int64_t y, int64_t x, A weight) {
                    const auto values = *layout.cell(roi.level, roi.image, channel, y, x);
                    for (int c = 0; c < Width; ++c) sums[c] += weight * load(&values.values[c]);
                });
            }
            Pack<T, Width> answer;
            for (int c = 0; c < Width; ++c) store(&answer.values[c], sums[c]);
            *layout.bin(k, channel, i, j) = answer;
        });
    }
};

// Adds the gradient of one channel of one bin to the cells it was pooled from. Bins share cells, so the maps are in
// Accumulate<T>: the sum of many small parts is rounded to T once.
template <class T>
struct RoIAlignBackward {
    using A = Accumulate<T>;
    RoIAlignLayout<T, 1> grads;
    RoIAlignLayout<A, 1> sums;

    explicit RoIAlignBackward(const RoIAlignCall& call) : grads{call}, sums{call} {}

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const RoIAlignCall& call = grads.call;
        grads.at(index, call.height, call.width, [&](int64_t k, int64_t channel, int64_t i, int64_t j) {
            const RoIPlace<A> roi(call, k);
            if (!roi.valid) return;
            const A grad = load(grads.bin(k, channel, i, j)->values);
            for_each_cell(call, roi, i, j, [&](int64_t y, int64_t x, A weight) {
                add(sums.cell(roi.level, roi.image, channel, y, x)->values, weight * grad);
            });
        });
    }
};

// The same gradient with one writer for each value: sums `Width` channels of one cell of a level over all RoIs in
// order.
template <class T, int Width>
struct RoIAlignGather {
    using A = Accumulate<T>;
    RoIAlignLayout<T, Width> layout;
    int64_t level;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const RoIAlignCall& call = layout.call;
        const int64_t height = call.maps.height[level], width = call.maps.width[level];
        layout.at(index, height, width, [&](int64_t image, int64_t channel, int64_t y, int64_t x) {
            A sums[Width];
            for (A& sum : sums) sum = A(0);
            for (int64_t k = 0; k < call.rois; ++k) {
                const RoIPlace<A> roi(call, k);
                if (!roi.valid || roi.level != level || roi.image != image) continue;
                const A top = roi.y.start, left = roi.x.start;
                if (!near(top, top + roi.y.bin * A(call.height), y)) continue;
                if (!near(left, left + roi.x.bin * A(call.width), x)) continue;
                for (int64_t i = 0; i < call.height; ++i) {
                    const A row = weight(roi.y, i, y, height);
                    if (row == A(0)) continue;
                    for (int64_t j = 0; j < call.width; ++j) {
                        const A both = row * weight(roi.x, j, x, width);
                        if (both == A(0)) continue;
                        const auto grads = *layout.bin(k, channel, i, j);
                        for (int c = 0; c < Width; ++c) sums[c] += both * load(&grads.values[c]);
                    }
                }
            }
            Pack<T, Width> answer;
            for (int c = 0; c < Width; ++c) store(&answer.values[c], sums[c]);
            *layout.cell(level, image, channel, y, x) = answer;
        });
    }

  private:
    // Whether samples between two positions may read a cell; one at the border takes samples up to a cell outside.
    static VISIONLAB_HOST_DEVICE bool near(A from, A to, int64_t cell) {
        const A low = from < to ? from : to, high = from < to ? to : from;
        return !(low > A(cell + 2) || high < A(cell - 2));
    }

    static VISIONLAB_HOST_DEVICE A weight(const RoIAxis<A>& axis, int64_t bin, int64_t cell, int64_t size) {
        const A start = axis.start + A(bin) * axis.bin;
        if (axis.samples == A(0) || !near(start, start + axis.bin, cell)) return A(0);
        A sum = A(0);
        for (int64_t i = 0; i < static_cast<int64_t>(axis.samples); ++i) {
            sum += LinearSample<A>(axis.position(bin, i), size).weight_of(cell);
        }
        return sum / axis.samples;
    }
};

// Calls function(width) with the number of channels to compute together as an integral constant.
template <class T, class Function>
auto with_width(const RoIAlignCall& call, const Function& function) {
    constexpr int width = 16 / static_cast<int>(sizeof(T));
    if (pack_width(call, sizeof(T)) == width) return function(std::integral_constant<int, width>{});
    return function(std::integral_constant<int, 1>{});
}

}  // namespace visionlab

// Position-sensitive pooling: bin (i, j) reads channels c * bins + (i, j), one of each class, with the same weights for
// all classes. So the maps of one bin pass through in lines of classes, one cache line per pixel, and every box is
// pooled from them in vectors.
#pragma once

#include "rois.h"

namespace visionlab {

namespace {

// The cells that the bins of a box read along one axis, and their weights; those of bin i end at ends[i].
template <class T>
struct BinTaps {
    std::vector<int64_t> cells, ends;
    std::vector<T> weights;

    // Samples advance by small steps, so a cell met before in this bin is one of the last two.
    void add(int64_t cell, T weight) {
        if (weight == T(0)) return;
        const int64_t end = static_cast<int64_t>(cells.size()), first = ends.empty() ? 0 : ends.back();
        for (int64_t i = end; i > first && i + 2 > end; --i) {
            if (cells[i - 1] == cell) {
                weights[i - 1] += weight;
                return;
            }
        }
        cells.push_back(cell);
        weights.push_back(weight);
    }
    void end_bin() { ends.push_back(static_cast<int64_t>(cells.size())); }
    int64_t begin(int64_t bin) const { return bin == 0 ? 0 : ends[bin - 1]; }
};

// A box; each of its bins is the weighted sum over its cells, divided by their number where `mean` is set.
template <class T>
struct PSRoI {
    int64_t index = 0, image = 0;
    BinTaps<T> rows, columns;
};

template <class T>
struct PSRoIs {
    std::vector<PSRoI<T>> all;  // sorted by image
    std::vector<int64_t> first;
    bool mean;

    // make(box, roi) fills the rows and columns.
    template <class Make>
    PSRoIs(const char* name, const T* boxes, int64_t count, int64_t batch, bool mean_of_cells, const Make& make)
        : all(count), first(batch + 1, 0), mean(mean_of_cells) {
        check_boxes(name, boxes, count, batch);
        for (int64_t k = 0; k < count; ++k) {
            all[k].index = k;
            all[k].image = image_of(boxes + 5 * k, batch);
            make(boxes + 5 * k, all[k]);
            ++first[all[k].image + 1];
        }
        for (int64_t n = 0; n < batch; ++n) first[n + 1] += first[n];
        std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.image < b.image; });
    }
};

// Sums bin (i, j) of a box over its cells into one line.
template <int Bytes, class T>
VISIONLAB_INLINE void pool_line_body(const T* lines, int64_t width, const PSRoI<T>& roi, int64_t i, int64_t j,
                                     bool mean, T* sums) {
    using V = simd::Vector<T, Bytes>;
    constexpr int count = 64 / Bytes;
    const int64_t row_begin = roi.rows.begin(i), row_end = roi.rows.ends[i];
    const int64_t begin = roi.columns.begin(j), end = roi.columns.ends[j];
    const T* const weights = roi.columns.weights.data();
    const int64_t* const cells = roi.columns.cells.data();
    typename V::type sum[count] = {};
    for (int64_t row = row_begin; row < row_end; ++row) {
        const T* line = lines + roi.rows.cells[row] * width * line_channels<T>;
        const T row_weight = roi.rows.weights[row];
        for (int64_t column = begin; column < end; ++column) {
            const T* pixel = line + cells[column] * line_channels<T>;
            const T weight = row_weight * weights[column];
#pragma GCC unroll 4
            for (int v = 0; v < count; ++v) sum[v] += weight * V::load(pixel + v * V::lanes);
        }
    }
    const int64_t area = (row_end - row_begin) * (end - begin);
    const T divisor = mean && area > 0 ? T(area) : T(1);
#pragma GCC unroll 4
    for (int v = 0; v < count; ++v) V::store(sums + v * V::lanes, sum[v] / divisor);
}

VISIONLAB_SIMD_LEVELS(pool_line, pool_line_body)

// The transpose: adds a line, weighted, to the cells of bin (i, j).
template <int Bytes, class T>
VISIONLAB_INLINE void spread_line_body(T* const& lines, int64_t width, const PSRoI<T>& roi, int64_t i, int64_t j,
                                       bool mean, const T* grads) {
    using V = simd::Vector<T, Bytes>;
    constexpr int count = 64 / Bytes;
    const int64_t row_begin = roi.rows.begin(i), row_end = roi.rows.ends[i];
    const int64_t begin = roi.columns.begin(j), end = roi.columns.ends[j];
    const T* const weights = roi.columns.weights.data();
    const int64_t* const cells = roi.columns.cells.data();
    const int64_t area = (row_end - row_begin) * (end - begin);
    const T divisor = mean && area > 0 ? T(area) : T(1);
    typename V::type grad[count];
#pragma GCC unroll 4
    for (int v = 0; v < count; ++v) grad[v] = V::load(grads + v * V::lanes) / divisor;
    for (int64_t row = row_begin; row < row_end; ++row) {
        T* line = lines + roi.rows.cells[row] * width * line_channels<T>;
        const T row_weight = roi.rows.weights[row];
        for (int64_t column = begin; column < end; ++column) {
            T* pixel = line + cells[column] * line_channels<T>;
            const T weight = row_weight * weights[column];
#pragma GCC unroll 4
            for (int v = 0; v < count; ++v) {
                V::store(pixel + v * V::lanes, V::load(pixel + v * V::lanes) + weight * grad[v]);
            }
        }
    }
}

VISIONLAB_SIMD_LEVELS(spread_line, spread_line_body)

// ---- tasks ---------------------------------------------------------------------------------------------------------

// Calls function(lines, image, first bin, bins, first class, classes) in parallel. The maps of one bin are a task where
// they lie apart; where all bins share a pixel, they are one task together. `lines` is room for them.
template <class T, class Function>
void for_each_bin_of_classes(const MapLayout& map, const MapLayout& pooled, const Function& function) {
    const int64_t classes = pooled.channels, bins = pooled.area();
    const int64_t blocks = (classes + line_channels<T> - 1) / line_channels<T>;
    const int64_t groups = map.channels_last ? 1 : bins, group = bins / groups;
    parallel_for(0, map.batch * groups * blocks, 1, [&](int64_t from, int64_t to) {
        const Lines<T> lines(group * map.area());
        for (int64_t task = from; task < to; ++task) {
            const int64_t block = task % blocks, bin = task / blocks % groups * group;
            const int64_t begin = classes * block / blocks, end = classes * (block + 1) / blocks;
            function(lines.data(), task / blocks / groups, bin, group, begin, end - begin);
        }
    });
}

template <class T>
void ps_pool(const T* input, const MapLayout& map, const MapLayout& pooled, const PSRoIs<T>& rois, T* output) {
    constexpr int64_t most = line_channels<T>;
    const int64_t all_bins = pooled.area(), area = map.area();
    for_each_bin_of_classes<T>(
        map, pooled, [&](T* lines, int64_t n, int64_t bin0, int64_t bins, int64_t class0, int64_t classes) {
            if (rois.first[n] == rois.first[n + 1]) return;
            const T* from = input + map.plane(n, class0 * all_bins + bin0);
            if (classes < most) std::fill_n(lines, bins * area * most, T(0));
            if (map.channels_last) {
                for (int64_t cell = 0; cell < area; ++cell) {
                    transpose(from + cell * map.channels, bins, classes, bins, lines + cell * most, area * most);
                }
            } else {
                transpose(from, all_bins * area, classes, area, lines, most);
            }
            alignas(64) T sums[most];
            T* const line = sums;
            for (int64_t k = rois.first[n]; k < rois.first[n + 1]; ++k) {
                const PSRoI<T>& roi = rois.all[k];
                for (int64_t bin = bin0; bin < bin0 + bins; ++bin) {
                    const T* const maps = lines + (bin - bin0) * area * most;
                    pool_line(maps, map.width, roi, bin / pooled.width, bin % pooled.width, rois.mean, line);
                    T* to = output + pooled.plane(roi.index, class0) + bin * pooled.pixel_stride();
                    const int64_t stride = pooled.channels_last ? 1 : all_bins;
                    for (int64_t c = 0; c < classes; ++c) to[c * stride] = sums[c];
                }
            }
        });
}

template <class T>
void ps_spread(const T* grad, const MapLayout& map, const MapLayout& pooled, const PSRoIs<T>& rois, T* output) {
    constexpr int64_t most = line_channels<T>;
    const int64_t all_bins = pooled.area(), area = map.area();
    for_each_bin_of_classes<T>(
        map, pooled, [&](T* lines, int64_t n, int64_t bin0, int64_t bins, int64_t class0, int64_t classes) {
            std::fill_n(lines, bins * area * most, T(0));
            alignas(64) T grads[most] = {};
            const T* const line = grads;
            for (int64_t k = rois.first[n]; k < rois.first[n + 1]; ++k) {
                const PSRoI<T>& roi = rois.all[k];
                for (int64_t bin = bin0; bin < bin0 + bins; ++bin) {
                    const T* from = grad + pooled.plane(roi.index, class0) + bin * pooled.pixel_stride();
                    const int64_t stride = pooled.channels_last ? 1 : all_bins;
                    for (int64_t c = 0; c < classes; ++c) grads[c] = from[c * stride];
                    T* const maps = lines + (bin - bin0) * area * most;
                    spread_line(maps, map.width, roi, bin / pooled.width, bin % pooled.width, rois.mean, line);
                }
            }
            T* to = output + map.plane(n, class0 * all_bins + bin0);
            if (map.channels_last) {
                for (int64_t cell = 0; cell < area; ++cell) {
                    transpose(lines + cell * most, area * most, bins, classes, to + cell * map.channels, bins);
                }
            } else {
                transpose(lines, most, area, classes, to, all_bins * area);
            }
        });
}

// The pooled layout of (K, 5) boxes of a map.
inline MapLayout ps_pooled(const MapLayout& map, int64_t boxes, int64_t height, int64_t width) {
    return {boxes, map.channels / (height * width), height, width, map.channels_last};
}

inline void check_classes(const char* name, int64_t channels, int64_t height, int64_t width) {
    if (height < 1 || width < 1 || channels % (height * width) != 0) {
        fail(name, ": input: expected a multiple of ", height, " * ", width, " channels, got ", channels);
    }
}

}  // namespace

}  // namespace visionlab

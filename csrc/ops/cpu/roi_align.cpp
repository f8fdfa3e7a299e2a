// RoIAlign. Sampling is linear along each axis on its own, so a bin is a small weighted sum over rows times one over
// columns, in which samples that share a cell share one read. Sums run over channels that lie side by side: a
// channels-last map is read where it lies, a contiguous one through a transposed copy of a few channels at a time.
#include "../roi_align.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "../../common.h"
#include "../../memory.h"
#include "../../simd.h"

namespace visionlab {

namespace {

struct Pooling {
    int64_t height, width;
    double scale;
    int64_t sampling_ratio;
    bool aligned;
};

// A tensor (batch, channels, height, width), or a part of it in which pixels are `pixel` values apart.
struct Map {
    int64_t batch, channels, height, width;
    int64_t area() const { return height * width; }
    int64_t size() const { return channels * area(); }
};

template <class T>
struct Tap {
    int64_t cell;
    T weight;
};

// The cells that each bin reads along one axis; the taps of bin i end at ends[i].
template <class T>
struct AxisTaps {
    std::vector<Tap<T>> taps;
    std::vector<int64_t> ends;

    AxisTaps() = default;
    AxisTaps(const RoIAxis<T>& axis, int64_t bins, int64_t size) {
        ends.reserve(bins);
        for (int64_t bin = 0; bin < bins; ++bin) {
            const size_t first = taps.size();
            for (int64_t i = 0; i < static_cast<int64_t>(axis.samples); ++i) {
                const LinearSample<T> sample(axis.position(bin, i), size);
                add(first, sample.low, sample.low_weight / axis.samples);
                add(first, sample.high, sample.high_weight / axis.samples);
            }
            ends.push_back(static_cast<int64_t>(taps.size()));
        }
    }

  private:
    // Samples advance by small steps, so a cell met before in this bin is one of the last two.
    void add(size_t first, int64_t cell, T weight) {
        if (weight == T(0)) return;
        const size_t end = taps.size();
        for (size_t i = end; i > first && i + 2 > end; --i) {
            if (taps[i - 1].cell == cell) {
                taps[i - 1].weight += weight;
                return;
            }
        }
        taps.push_back({cell, weight});
    }
};

template <class T>
struct RoI {
    int64_t index = 0;
    int64_t image = 0;
    int64_t band = 0;  // which band of rows its center lies in
    T column = 0;      // of its center
    AxisTaps<T> rows, columns;
};

constexpr double most_samples = 1 << 16;
constexpr int64_t band_height = 16;

// Where the middle of a RoI lies on the map, from 0 to `size`; 0 for one so large that its side has no number.
template <class T>
T center(const RoIAxis<T>& axis, int64_t bins, int64_t size) {
    const T middle = axis.start + axis.bin * T(bins) / T(2);
    return middle > T(0) ? std::min(middle, T(size)) : T(0);
}

template <class T>
RoI<T> make_roi(const T* box, int64_t index, const Pooling& pooling, const Map& map) {
    for (int64_t i = 0; i < 5; ++i) {
        if (!std::isfinite(box[i])) fail("roi_align: boxes must be finite, got ", box[i], " in box ", index);
    }
    if (!(box[0] >= T(0) && box[0] < T(map.batch))) {
        fail("roi_align: the image index of a box must be in [0, ", map.batch, "), got ", box[0], " in box ", index);
    }
    const T scale = static_cast<T>(pooling.scale);
    const RoIAxis<T> y(box[2], box[4], scale, pooling.height, pooling.sampling_ratio, pooling.aligned);
    const RoIAxis<T> x(box[1], box[3], scale, pooling.width, pooling.sampling_ratio, pooling.aligned);
    if (!(y.samples <= most_samples && x.samples <= most_samples)) {
        fail("roi_align: box ", index, " would take more than ", most_samples,
             " samples along one side of a bin; clip boxes to the image or set sampling_ratio");
    }
    return {index,
            static_cast<int64_t>(box[0]),
            static_cast<int64_t>(center(y, pooling.height, map.height)) / band_height,
            center(x, pooling.width, map.width),
            AxisTaps<T>(y, pooling.height, map.height),
            AxisTaps<T>(x, pooling.width, map.width)};
}

// All RoIs, those of one image together and then neighbors together, so that what one has read is in cache for the
// next. Those of image n are first[n] up to first[n + 1].
template <class T>
struct RoIs {
    std::vector<RoI<T>> all;
    std::vector<int64_t> first;

    RoIs(const Tensor& boxes, const Pooling& pooling, const Map& map) : all(boxes.size(0)), first(map.batch + 1, 0) {
        const Tensor rows = torch::stable::contiguous(boxes);
        const T* values = static_cast<const T*>(rows.const_data_ptr());
        parallel_for(0, boxes.size(0), 64, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) all[i] = make_roi(values + 5 * i, i, pooling, map);
        });
        std::sort(all.begin(), all.end(), [](const RoI<T>& a, const RoI<T>& b) {
            return std::tie(a.image, a.band, a.column, a.index) < std::tie(b.image, b.band, b.column, b.index);
        });
        for (const RoI<T>& roi : all) ++first[roi.image + 1];
        for (int64_t n = 0; n < map.batch; ++n) first[n + 1] += first[n];
    }
};

// ---- kernels: one RoI, `channels` channels side by side ------------------------------------------------------------

// Calls function(bin, first row tap, its end, first column tap, its end) for each bin.
template <class T, class Function>
VISIONLAB_INLINE void for_each_bin(const RoI<T>& roi, const Function& function) {
    int64_t bin = 0, row = 0;
    for (const int64_t row_end : roi.rows.ends) {
        int64_t column = 0;
        for (const int64_t column_end : roi.columns.ends) {
            function(bin++, row, row_end, column, column_end);
            column = column_end;
        }
        row = row_end;
    }
}

// Sums `Count` vectors of channels over the cells of one bin.
template <class V, int Count, class T>
VISIONLAB_INLINE void gather(const T* map, int64_t row_stride, int64_t pixel_stride, const Tap<T>* row,
                             const Tap<T>* row_end, const Tap<T>* column, const Tap<T>* column_end, T* out) {
    typename V::type sums[Count] = {};
    for (; row < row_end; ++row) {
        const T* line = map + row->cell * row_stride;
        for (const Tap<T>* tap = column; tap < column_end; ++tap) {
            const T* pixel = line + tap->cell * pixel_stride;
            const T weight = row->weight * tap->weight;
#pragma GCC unroll 4
            for (int i = 0; i < Count; ++i) sums[i] += weight * V::load(pixel + i * V::lanes);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i) V::store(out + i * V::lanes, sums[i]);
}

template <int Bytes, class T>
VISIONLAB_INLINE void pool_body(const T* map, int64_t row_stride, int64_t pixel_stride, const RoI<T>& roi,
                                int64_t channels, T* out, int64_t bin_stride) {
    using V = simd::Vector<T, Bytes>;
    using Scalar = simd::Vector<T, sizeof(T)>;
    for_each_bin(roi, [&](int64_t bin, int64_t row, int64_t row_end, int64_t column,
                          int64_t column_end) __attribute__((always_inline)) {
        const Tap<T>*rows = roi.rows.taps.data(), *columns = roi.columns.taps.data();
        int64_t c = 0;
        const auto sum = [&](auto vector, auto count) __attribute__((always_inline)) {
            using W = decltype(vector);
            gather<W, decltype(count)::value>(map + c, row_stride, pixel_stride, rows + row, rows + row_end,
                                              columns + column, columns + column_end, out + bin * bin_stride + c);
            c += W::lanes * decltype(count)::value;
        };
        while (c + 4 * V::lanes <= channels) sum(V{}, std::integral_constant<int, 4>{});
        while (c + V::lanes <= channels) sum(V{}, std::integral_constant<int, 1>{});
        while (c < channels) sum(Scalar{}, std::integral_constant<int, 1>{});
    });
}

VISIONLAB_SIMD_LEVELS(pool, pool_body)

// The transpose of gather: adds the gradient of one bin, weighted, to its cells.
template <class V, int Count, class T>
VISIONLAB_INLINE void scatter(T* map, int64_t row_stride, int64_t pixel_stride, const Tap<T>* row,
                              const Tap<T>* row_end, const Tap<T>* column, const Tap<T>* column_end, const T* grad) {
    typename V::type grads[Count];
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i) grads[i] = V::load(grad + i * V::lanes);
    for (; row < row_end; ++row) {
        T* line = map + row->cell * row_stride;
        for (const Tap<T>* tap = column; tap < column_end; ++tap) {
            T* pixel = line + tap->cell * pixel_stride;
            const T weight = row->weight * tap->weight;
#pragma GCC unroll 4
            for (int i = 0; i < Count; ++i) {
                V::store(pixel + i * V::lanes, V::load(pixel + i * V::lanes) + weight * grads[i]);
            }
        }
    }
}

template <int Bytes, class T>
VISIONLAB_INLINE void spread_body(T* map, int64_t row_stride, int64_t pixel_stride, const RoI<T>& roi, int64_t channels,
                                  const T* grad, int64_t bin_stride) {
    using V = simd::Vector<T, Bytes>;
    using Scalar = simd::Vector<T, sizeof(T)>;
    for_each_bin(roi, [&](int64_t bin, int64_t row, int64_t row_end, int64_t column,
                          int64_t column_end) __attribute__((always_inline)) {
        const Tap<T>*rows = roi.rows.taps.data(), *columns = roi.columns.taps.data();
        int64_t c = 0;
        const auto add = [&](auto vector, auto count) __attribute__((always_inline)) {
            using W = decltype(vector);
            scatter<W, decltype(count)::value>(map + c, row_stride, pixel_stride, rows + row, rows + row_end,
                                               columns + column, columns + column_end, grad + bin * bin_stride + c);
            c += W::lanes * decltype(count)::value;
        };
        while (c + 4 * V::lanes <= channels) add(V{}, std::integral_constant<int, 4>{});
        while (c + V::lanes <= channels) add(V{}, std::integral_constant<int, 1>{});
        while (c < channels) add(Scalar{}, std::integral_constant<int, 1>{});
    });
}

VISIONLAB_SIMD_LEVELS(spread, spread_body)

// Writes the (rows, columns) matrix at `from` as (columns, rows) to `to`; neighboring lines are a stride apart.
template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
    constexpr int64_t tile = 32;
    constexpr int64_t lanes = 4;
    for (int64_t column = 0; column < columns; column += tile) {
        const int64_t last = std::min(column + tile, columns);
        int64_t row = 0;
        for (; row + lanes <= rows; row += lanes) {
            const T* line = from + row * from_stride;
            for (int64_t i = column; i < last; ++i) {
                const T together[lanes] = {line[i], line[from_stride + i], line[2 * from_stride + i],
                                           line[3 * from_stride + i]};
                std::memcpy(to + i * to_stride + row, together, sizeof together);
            }
        }
        for (; row < rows; ++row) {
            for (int64_t i = column; i < last; ++i) to[i * to_stride + row] = from[row * from_stride + i];
        }
    }
}

// ---- tasks ---------------------------------------------------------------------------------------------------------

// Calls function(image, first channel, channels) in parallel. No task writes what another one touches, and each value
// is summed within one task in the order of the RoIs, so nothing depends on the number of threads.
template <class Function>
void for_each_block(const Map& map, int64_t most, const Function& function) {
    const int64_t share = map.batch * map.channels / torch::stable::get_num_threads();
    const int64_t block = std::clamp<int64_t>((share + 15) / 16 * 16, 16, std::max<int64_t>(most, 16));
    const int64_t blocks = (map.channels + block - 1) / block;
    parallel_for(0, map.batch * blocks, 1, [&](int64_t from, int64_t to) {
        for (int64_t task = from; task < to; ++task) {
            const int64_t channel = task % blocks * block;
            function(task / blocks, channel, std::min(block, map.channels - channel));
        }
    });
}

template <class T>
void pool_channels_last(const T* input, const Map& map, const RoIs<T>& rois, int64_t bins, T* output) {
    parallel_for(0, static_cast<int64_t>(rois.all.size()), 4, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
            const RoI<T>& roi = rois.all[i];
            pool(input + roi.image * map.size(), map.width * map.channels, map.channels, roi, map.channels,
                 output + roi.index * bins * map.channels, map.channels);
        }
    });
}

template <class T>
void spread_channels_last(const T* grad, const Map& map, const RoIs<T>& rois, int64_t bins, T* output) {
    for_each_block(map, map.channels, [&](int64_t n, int64_t channel, int64_t channels) {
        T* target = output + n * map.size() + channel;
        for (int64_t i = rois.first[n]; i < rois.first[n + 1]; ++i) {
            const RoI<T>& roi = rois.all[i];
            spread(target, map.width * map.channels, map.channels, roi, channels,
                   grad + roi.index * bins * map.channels + channel, map.channels);
        }
    });
}

// Contiguous maps go through a channels-last copy of this many channels, small enough to stay near the core.
constexpr int64_t copied_channels = 32;

template <class T>
void pool_contiguous(const T* input, const Map& map, const RoIs<T>& rois, int64_t bins, T* output) {
    for_each_block(map, copied_channels, [&](int64_t n, int64_t channel, int64_t channels) {
        if (rois.first[n] == rois.first[n + 1]) return;
        const Scratch<T> copy(map.area() * channels), pooled(bins * channels);
        transpose(input + n * map.size() + channel * map.area(), map.area(), channels, map.area(), copy.data(),
                  channels);
        for (int64_t i = rois.first[n]; i < rois.first[n + 1]; ++i) {
            const RoI<T>& roi = rois.all[i];
            pool(copy.data(), map.width * channels, channels, roi, channels, pooled.data(), channels);
            transpose(pooled.data(), channels, bins, channels, output + (roi.index * map.channels + channel) * bins,
                      bins);
        }
    });
}

template <class T>
void spread_contiguous(const T* grad, const Map& map, const RoIs<T>& rois, int64_t bins, T* output) {
    for_each_block(map, copied_channels, [&](int64_t n, int64_t channel, int64_t channels) {
        if (rois.first[n] == rois.first[n + 1]) return;
        const Scratch<T> copy(map.area() * channels), pooled(bins * channels);
        std::fill_n(copy.data(), map.area() * channels, T(0));
        for (int64_t i = rois.first[n]; i < rois.first[n + 1]; ++i) {
            const RoI<T>& roi = rois.all[i];
            transpose(grad + (roi.index * map.channels + channel) * bins, bins, channels, bins, pooled.data(),
                      channels);
            spread(copy.data(), map.width * channels, channels, roi, channels, pooled.data(), channels);
        }
        transpose(copy.data(), channels, map.area(), channels, output + n * map.size() + channel * map.area(),
                  map.area());
    });
}

// Whether torch would call the tensor channels-last and not contiguous.
bool is_channels_last(const Tensor& tensor) {
    if (tensor.is_contiguous()) return false;
    int64_t expected = 1;
    for (const int64_t dim : {1, 3, 2, 0}) {
        if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return false;
        expected *= tensor.size(dim);
    }
    return true;
}

MemoryFormat format(bool channels_last) {
    return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// An uninitialized answer.
Tensor make_output(const Tensor& like, const Map& map, bool channels_last) {
    Tensor output = torch::stable::empty({map.batch, map.channels, map.height, map.width}, like.scalar_type(),
                                         std::nullopt, std::nullopt, std::nullopt, format(channels_last));
    use_huge_pages(output.mutable_data_ptr(), output.numel() * static_cast<int64_t>(output.element_size()));
    return output;
}

}  // namespace

Tensor roi_align(const Tensor& input, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                 double spatial_scale, int64_t sampling_ratio, bool aligned) {
    const Map map{input.size(0), input.size(1), input.size(2), input.size(3)};
    const Pooling pooling{pooled_height, pooled_width, spatial_scale, sampling_ratio, aligned};
    const bool channels_last = is_channels_last(input);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    Tensor output = make_output(input, {boxes.size(0), map.channels, pooled_height, pooled_width}, channels_last);
    dispatch_floating("roi_align", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const auto pool_all = channels_last ? pool_channels_last<T> : pool_contiguous<T>;
        pool_all(static_cast<const T*>(source.const_data_ptr()), map, RoIs<T>(boxes, pooling, map),
                 pooled_height * pooled_width, static_cast<T*>(output.mutable_data_ptr()));
    });
    return output;
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& boxes, int64_t batch, int64_t channels, int64_t height,
                          int64_t width, double spatial_scale, int64_t sampling_ratio, bool aligned,
                          bool channels_last, bool) {
    const Map map{batch, channels, height, width};
    const Pooling pooling{grad.size(2), grad.size(3), spatial_scale, sampling_ratio, aligned};
    const Tensor source = torch::stable::contiguous(grad, format(channels_last));
    Tensor output = make_output(grad, map, channels_last);
    torch::stable::zero_(output);
    dispatch_floating("roi_align_backward", grad.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const auto spread_all = channels_last ? spread_channels_last<T> : spread_contiguous<T>;
        spread_all(static_cast<const T*>(source.const_data_ptr()), map, RoIs<T>(boxes, pooling, map),
                   pooling.height * pooling.width, static_cast<T*>(output.mutable_data_ptr()));
    });
    return output;
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("roi_align", TORCH_BOX(&visionlab::roi_align));
    m.impl("roi_align_backward", TORCH_BOX(&visionlab::roi_align_backward));
}

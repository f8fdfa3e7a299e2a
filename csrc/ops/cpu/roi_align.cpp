// RoIAlign from one map or from a pyramid. Sampling is linear along each axis on its own, so a bin is a small weighted
// sum over rows times one over columns, in which samples that share a cell share one read. Sums run over channels that
// lie side by side: a channels-last map is read where it lies, a contiguous one through a transposed copy of a few
// channels at a time.
#include "../../channels.h"
#include "../../scalar.h"
#include "../../simd.h"
#include "roi_taps.h"

namespace visionlab {

namespace {

// A map whose rows and pixels are so many values apart.
template <class T>
struct Pixels {
    T* values;
    int64_t row, pixel;
};

// Calls function(line, weight) for each cell of a row that a bin reads.
template <class T, class Value, class Function>
VISIONLAB_INLINE void for_each_tap(const Pixels<Value>& map, const Bin<T>& bin, const Tap<T>& row, int64_t channel,
                                   const Function& function) {
    Value* line = map.values + channel + row.cell * map.row;
    for (const Tap<T>* tap = bin.column; tap < bin.column_end; ++tap) {
        function(line + tap->cell * map.pixel, row.weight * tap->weight);
    }
}

// Sums `Count` vectors of channels over the cells of one bin.
template <class V, int Count, class T>
VISIONLAB_INLINE void gather(const Pixels<const T>& map, const Bin<T>& bin, int64_t channel, T* out) {
    typename V::type sums[Count] = {};
    for (const Tap<T>* row = bin.row; row < bin.row_end; ++row) {
        for_each_tap(map, bin, *row, channel, [&](const T* pixel, T weight) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int v = 0; v < Count; ++v) sums[v] += weight * V::load(pixel + v * V::lanes);
        });
    }
#pragma GCC unroll 8
    for (int v = 0; v < Count; ++v) V::store(out + channel + v * V::lanes, sums[v]);
}

// The transpose of gather: adds the gradient of one bin, weighted, to those of its cells that lie in some rows.
template <class V, int Count, class T>
VISIONLAB_INLINE void scatter(const Pixels<T>& map, const Cells& rows, const Bin<T>& bin, int64_t channel,
                              const T* grad) {
    typename V::type grads[Count];
#pragma GCC unroll 8
    for (int v = 0; v < Count; ++v) grads[v] = V::load(grad + channel + v * V::lanes);
    for (const Tap<T>* row = bin.row; row < bin.row_end; ++row) {
        if (!rows.contain(row->cell)) continue;
        for_each_tap(map, bin, *row, channel, [&](T* pixel, T weight) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int v = 0; v < Count; ++v) {
                V::store(pixel + v * V::lanes, V::load(pixel + v * V::lanes) + weight * grads[v]);
            }
        });
    }
}

// Some bins of one map. The channels of bin number b are at `pooled + (b - base) * stride`.
template <class T>
struct Bins {
    const Bin<T>*begin, *end;
    int64_t channels, stride, base = 0;
};

// Calls kernel(vector, count, bin, channel) for each bin and group of channels.
template <int Bytes, class T, class Kernel>
VISIONLAB_INLINE void for_each_bin(const Bins<T>& bins, const Kernel& kernel) {
    using Wide = simd::Vector<T, Bytes>;
    for (const Bin<T>* bin = bins.begin; bin < bins.end; ++bin) {
        int64_t done = 0;  // eight vectors at once: the fewer passes over the cells, the better
        for (; done + 8 * Wide::lanes <= bins.channels; done += 8 * Wide::lanes) {
            kernel(Wide{}, std::integral_constant<int, 8>{}, *bin, done);
        }
        for_each_channel<T, Bytes>(bins.channels - done,
                                   [&](auto vector, auto count, int64_t channel)
                                       __attribute__((always_inline)) { kernel(vector, count, *bin, done + channel); });
    }
}

template <int Bytes, class T>
VISIONLAB_INLINE void pool_body(const Pixels<const T>& map, const Bins<T>& bins, T* pooled) {
    for_each_bin<Bytes>(
        bins, [&](auto vector, auto count, const Bin<T>& bin, int64_t channel) __attribute__((always_inline)) {
            gather<decltype(vector), decltype(count)::value>(map, bin, channel,
                                                             pooled + (bin.number - bins.base) * bins.stride);
        });
}

template <int Bytes, class T>
VISIONLAB_INLINE void spread_body(const Pixels<T>& map, const Cells& rows, const Bins<T>& bins, const T* pooled) {
    for_each_bin<Bytes>(
        bins, [&](auto vector, auto count, const Bin<T>& bin, int64_t channel) __attribute__((always_inline)) {
            scatter<decltype(vector), decltype(count)::value>(map, rows, bin, channel,
                                                              pooled + (bin.number - bins.base) * bins.stride);
        });
}

VISIONLAB_SIMD_LEVELS(pool, pool_body)
VISIONLAB_SIMD_LEVELS(spread, spread_body)

// ---- tasks ---------------------------------------------------------------------------------------------------------
// No task writes what another one touches, and each value is summed within one task in the order of the bins, so
// nothing depends on the number of threads.

template <class T>
void pool_channels_last(const std::vector<const T*>& maps, const RoIs<T>& rois, const RoIPooling& pooling, T* output) {
    const int64_t channels = pooling.channels, levels = pooling.levels.size();
    parallel_for(0, rois.bins.size(), 64, [&](int64_t from, int64_t to) {
        for (int64_t m = 0; m < pooling.batch * levels; ++m) {
            const RoILevel& level = pooling.levels[m % levels];
            const Bins<T> bins{rois.bins.data() + std::max(from, rois.first[m]),
                               rois.bins.data() + std::min(to, rois.first[m + 1]), channels, channels};
            pool(Pixels<const T>{maps[m % levels] + m / levels * level.area() * channels, level.width * channels,
                                 channels},
                 bins, output);
        }
    });
}

// Threads share the rows of the maps, about as many bins to each, and many threads the channels too.
template <class T>
void spread_channels_last(const T* grad, const RoIs<T>& rois, const RoIPooling& pooling, const std::vector<T*>& maps) {
    const int64_t levels = pooling.levels.size(), pixel = pooling.channels, bins = rois.bins.size();
    const int64_t block = channels_beside_rows(pixel);
    const int64_t blocks = pixel == 0 ? 0 : (pixel + block - 1) / block;
    parallel_for(0, blocks * bins, 64, [&](int64_t from, int64_t to) {
        for (int64_t b = from / bins; b * bins < to; ++b) {
            const int64_t channel = b * block, channels = std::min(block, pixel - channel);
            const int64_t begin = std::max(from - b * bins, int64_t(0)), end = std::min(to - b * bins, bins);
            for (int64_t m = 0; m < pooling.batch * levels; ++m) {
                const RoILevel& level = pooling.levels[m % levels];
                const Cells rows{rois.first_row(m, begin, level.height), rois.first_row(m, end, level.height)};
                const auto [first, last] = rois.that_touch(m, rows);
                spread(Pixels<T>{maps[m % levels] + m / levels * level.area() * pixel + channel, level.width * pixel,
                                 pixel},
                       rows, Bins<T>{first, last, channels, pixel}, grad + channel);
            }
        }
    });
}

// Contiguous maps go through a channels-last copy of this many channels, small enough to stay near the core.
constexpr int64_t copied_channels = 64;

template <class T>
void pool_contiguous(const std::vector<const T*>& maps, const RoIs<T>& rois, const RoIPooling& pooling, T* output) {
    const int64_t levels = pooling.levels.size(), bins = pooling.bins();
    for_each_block(pooling.batch, pooling.channels, copied_channels, [&](int64_t n, int64_t channel, int64_t channels) {
        const Scratch<T> pooled(bins * channels);
        for (int64_t m = n * levels; m < (n + 1) * levels; ++m) {
            const RoILevel& level = pooling.levels[m % levels];
            const int64_t low = rois.rows[m].first, rows = rois.rows[m].second - low, row = level.width * channels;
            const Scratch<T> copy(rows * row);
            transpose(maps[m % levels] + (n * pooling.channels + channel) * level.area() + low * level.width,
                      level.area(), channels, rows * level.width, copy.data(), channels);
            const Pixels<const T> map{copy.data() - low * row, row, channels};
            const Bin<T>* last = rois.bins.data() + rois.first[m + 1];
            for (const Bin<T>* at = rois.bins.data() + rois.first[m]; at < last; at += bins) {
                const int64_t base = at->number;
                pool(map, Bins<T>{at, at + bins, channels, channels, base}, pooled.data());
                transpose(pooled.data(), channels, bins, channels, output + base * pooling.channels + channel * bins,
                          bins);
            }
        }
    });
}

template <class T>
void spread_contiguous(const T* grad, const RoIs<T>& rois, const RoIPooling& pooling, const std::vector<T*>& maps) {
    const int64_t levels = pooling.levels.size(), bins = pooling.bins();
    for_each_block(pooling.batch, pooling.channels, copied_channels, [&](int64_t n, int64_t channel, int64_t channels) {
        const Scratch<T> pooled(bins * channels);
        for (int64_t m = n * levels; m < (n + 1) * levels; ++m) {
            const RoILevel& level = pooling.levels[m % levels];
            const auto [low, high] = rois.rows[m];
            const int64_t row = level.width * channels;
            const Scratch<T> sums((high - low) * row);
            std::fill_n(sums.data(), (high - low) * row, T(0));
            const Pixels<T> map{sums.data() - low * row, row, channels};
            const Bin<T>* last = rois.bins.data() + rois.first[m + 1];
            for (const Bin<T>* at = rois.bins.data() + rois.first[m]; at < last; at += bins) {
                const int64_t base = at->number;
                transpose(grad + base * pooling.channels + channel * bins, bins, channels, bins, pooled.data(),
                          channels);
                spread(map, Cells{low, high}, Bins<T>{at, at + bins, channels, channels, base}, pooled.data());
            }
            T* target = maps[m % levels] + (n * pooling.channels + channel) * level.area();
            for (int64_t c = 0; c < channels; ++c) {
                std::fill(target + c * level.area(), target + c * level.area() + low * level.width, T(0));
                std::fill(target + c * level.area() + high * level.width, target + (c + 1) * level.area(), T(0));
            }
            transpose(sums.data(), channels, (high - low) * level.width, channels, target + low * level.width,
                      level.area());
        }
    });
}

// ---- operators -----------------------------------------------------------------------------------------------------

template <class T>
std::vector<T*> pointers(const std::vector<Tensor>& tensors) {
    std::vector<T*> values;
    for (const Tensor& tensor : tensors) values.push_back(static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())));
    return values;
}

Tensor pool_maps(const char* name, const std::vector<Tensor>& features, const Tensor& boxes, const Tensor* levels,
                 const RoIPooling& pooling) {
    const bool channels_last = is_channels_last(features[0]);
    const std::vector<Tensor> maps = in_format(features, channels_last);
    const RoIBoxes rois(boxes, levels);
    Tensor output =
        new_output(maps[0], {boxes.size(0), pooling.channels, pooling.height, pooling.width}, channels_last);
    dispatch_floating(name, output.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const RoIs<T> checked(name, rois, pooling, !channels_last);
        if (simd::level() == simd::Level::scalar) {
            const RoIAlignCall call = describe(name, maps, rois, pooling, channels_last, output);
            with_width<T>(call, [&](auto width) {
                const RoIAlignForward<T, decltype(width)::value> functor{{call}};
                for_each_index(functor.layout.bins(), functor);
            });
            return;
        }
        const auto pool_all = channels_last ? pool_channels_last<T> : pool_contiguous<T>;
        pool_all(pointers<const T>(maps), checked, pooling, mutable_data<T>(output));
    });
    return output;
}

std::vector<Tensor> spread_maps(const char* name, const Tensor& grad, const Tensor& boxes, const Tensor* levels,
                                const RoIPooling& pooling, bool channels_last, bool deterministic) {
    const Tensor source = torch::stable::contiguous(grad, format(channels_last));
    const RoIBoxes rois(boxes, levels);
    std::vector<Tensor> maps;
    for (const RoILevel& level : pooling.levels) {
        maps.push_back(new_output(grad, {pooling.batch, pooling.channels, level.height, level.width}, channels_last));
    }
    const bool scalar = simd::level() == simd::Level::scalar;
    if (scalar || channels_last) {
        for (Tensor& map : maps) torch::stable::zero_(map);
    }
    dispatch_floating(name, grad.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const RoIs<T> checked(name, rois, pooling, !channels_last);
        if (!scalar) {
            const auto spread_all = channels_last ? spread_channels_last<T> : spread_contiguous<T>;
            return spread_all(data<T>(source), checked, pooling, pointers<T>(maps));
        }
        const RoIAlignCall call = describe(name, maps, rois, pooling, channels_last, source);
        if (!deterministic) {
            const RoIAlignBackward<T> functor(call);
            return for_each_index_in_order(functor.grads.bins(), functor);
        }
        with_width<T>(call, [&](auto width) {
            for (int64_t level = 0; level < call.maps.count; ++level) {
                const RoIAlignGather<T, decltype(width)::value> functor{{call}, level};
                for_each_index(functor.layout.cells(level), functor);
            }
        });
    });
    return maps;
}

}  // namespace

Tensor roi_align(const Tensor& input, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                 double spatial_scale, int64_t sampling_ratio, bool aligned) {
    const RoIPooling pooling =
        describe_pooling({input}, {spatial_scale}, pooled_height, pooled_width, sampling_ratio, aligned);
    return pool_maps("roi_align", {input}, boxes, nullptr, pooling);
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& boxes, int64_t batch, int64_t channels, int64_t height,
                          int64_t width, double spatial_scale, int64_t sampling_ratio, bool aligned, bool channels_last,
                          bool deterministic) {
    const RoIPooling pooling{batch,          channels, {{height, width, spatial_scale}}, grad.size(2), grad.size(3),
                             sampling_ratio, aligned};
    return spread_maps("roi_align_backward", grad, boxes, nullptr, pooling, channels_last, deterministic)[0];
}

Tensor multi_scale_roi_align(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& levels,
                             int64_t pooled_height, int64_t pooled_width, const std::vector<double>& scales,
                             int64_t sampling_ratio, bool aligned) {
    const RoIPooling pooling = describe_pooling(features, scales, pooled_height, pooled_width, sampling_ratio, aligned);
    return pool_maps("multi_scale_roi_align", features, boxes, &levels, pooling);
}

std::vector<Tensor> multi_scale_roi_align_backward(const Tensor& grad, const Tensor& boxes, const Tensor& levels,
                                                   int64_t batch, int64_t channels, const std::vector<int64_t>& heights,
                                                   const std::vector<int64_t>& widths,
                                                   const std::vector<double>& scales, int64_t sampling_ratio,
                                                   bool aligned, bool channels_last, bool deterministic) {
    RoIPooling pooling{batch, channels, {}, grad.size(2), grad.size(3), sampling_ratio, aligned};
    for (size_t i = 0; i < scales.size(); ++i) pooling.levels.push_back({heights[i], widths[i], scales[i]});
    return spread_maps("multi_scale_roi_align_backward", grad, boxes, &levels, pooling, channels_last, deterministic);
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("roi_align", TORCH_BOX(&visionlab::roi_align));
    m.impl("roi_align_backward", TORCH_BOX(&visionlab::roi_align_backward));
    m.impl("multi_scale_roi_align", TORCH_BOX(&visionlab::multi_scale_roi_align));
    m.impl("multi_scale_roi_align_backward", TORCH_BOX(&visionlab::multi_scale_roi_align_backward));
}

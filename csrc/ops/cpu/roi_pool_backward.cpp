// The gradient of RoIPool: each bin gives its own to the cell of its maximum.
#include "../../scalar.h"
#include "roi_pool_plan.h"

namespace visionlab {

namespace {

// The order in which boxes give their gradients: image by image, then neighbors together.
struct RoIOrder {
    std::vector<int64_t> all, first;

    template <class T>
    RoIOrder(const T* boxes, int64_t count, int64_t batch, T scale) : all(count), first(batch + 1, 0) {
        constexpr T band = 32;
        std::vector<std::tuple<int64_t, T, T, int64_t>> keys(count);
        for (int64_t k = 0; k < count; ++k) {
            const T* box = boxes + 5 * k;
            const int64_t image = image_of(box, batch);
            const T row = std::floor((box[2] / 2 + box[4] / 2) * scale / band);
            keys[k] = {image, std::isfinite(row) ? row : T(0), box[1] / 2 + box[3] / 2, k};
            ++first[image + 1];
        }
        std::sort(keys.begin(), keys.end());
        for (int64_t k = 0; k < count; ++k) all[k] = std::get<3>(keys[k]);
        for (int64_t n = 0; n < batch; ++n) first[n + 1] += first[n];
    }
};

// Asks for `bytes` bytes that will be read soon: boxes lie far apart, where the CPU does not guess by itself.
inline void prefetch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// A cell is read as unsigned, so that -1 lies outside every map.
inline bool inside(int32_t cell, int64_t area) { return static_cast<uint32_t>(cell) < static_cast<uint32_t>(area); }

// The gradient of contiguous maps: of so few planes at a time that they stay in cache.
template <class T>
void spread_contiguous(const T* grad, const int32_t* argmax, const RoIOrder& order, const MapLayout& map,
                       const MapLayout& pooled, T* output) {
    const int64_t bins = pooled.area(), area = map.area();
    const int64_t bytes = std::max<int64_t>(area * sizeof(T), 1);
    const int64_t together = std::clamp<int64_t>((int64_t(256) << 10) / bytes, 1, line_channels<T>);
    const auto nothing = [](int64_t) { return 0; };
    for_each_part(map, together, nothing, [&](int, int64_t n, int64_t channel, int64_t channels) {
        T* const planes = output + map.plane(n, channel);
        std::fill_n(planes, channels * area, T(0));
        for (int64_t i = order.first[n]; i < order.first[n + 1]; ++i) {
            const int64_t at = pooled.plane(order.all[i], channel);
            const int64_t next = pooled.plane(order.all[std::min(i + 2, order.first[n + 1] - 1)], channel);
            prefetch(grad + next, channels * bins * sizeof(T));
            prefetch(argmax + next, channels * bins * sizeof(int32_t));
            for (int64_t c = 0; c < channels; ++c) {
                T* const plane = planes + c * area;
                const T* values = grad + at + c * bins;
                const int32_t* cells = argmax + at + c * bins;
                for (int64_t bin = 0; bin < bins; ++bin) {
                    if (inside(cells[bin], area)) plane[cells[bin]] += values[bin];
                }
            }
        }
    });
}

template <class T>
VISIONLAB_INLINE void add_to_lines(const T* values, const int32_t* cells, int64_t channels, uint32_t area, T* sums) {
    for (int64_t c = 0; c < channels; ++c) {
        const uint32_t cell = static_cast<uint32_t>(cells[c]);
        if (cell < area) sums[cell * line_channels<T> + c] += values[c];
    }
}

// The gradient of channels-last maps: through lines of channels.
template <class T>
void spread_channels_last(const T* grad, const int32_t* argmax, const RoIOrder& order, const MapLayout& map,
                          const MapLayout& pooled, T* output) {
    const int64_t bins = pooled.area(), area = map.area(), stride = map.channels;
    const auto make_lines = [&](int64_t) { return Lines<T>(area); };
    for_each_part(
        map, line_channels<T>, make_lines, [&](const Lines<T>& lines, int64_t n, int64_t channel, int64_t channels) {
            T* const sums = lines.data();
            std::fill_n(sums, area * line_channels<T>, T(0));
            for (int64_t i = order.first[n]; i < order.first[n + 1]; ++i) {
                const int64_t at = pooled.plane(order.all[i], channel);
                const int64_t next = pooled.plane(order.all[std::min(i + 1, order.first[n + 1] - 1)], channel) - at;
                const T* values = grad + at;
                const int32_t* cells = argmax + at;
                if (channels == line_channels<T>) {
                    for (int64_t bin = 0; bin < bins; ++bin, values += stride, cells += stride) {
                        __builtin_prefetch(values + next);
                        __builtin_prefetch(cells + next);
                        add_to_lines(values, cells, line_channels<T>, static_cast<uint32_t>(area), sums);
                    }
                } else {
                    for (int64_t bin = 0; bin < bins; ++bin, values += stride, cells += stride) {
                        add_to_lines(values, cells, channels, static_cast<uint32_t>(area), sums);
                    }
                }
            }
            unpack(sums, line_channels<T>, true, stride, channels, area, output + map.plane(n, channel));
        });
}

}  // namespace

Tensor roi_pool_backward(const Tensor& grad, const Tensor& argmax, const Tensor& boxes, int64_t batch, int64_t channels,
                         int64_t height, int64_t width, double spatial_scale, bool channels_last, bool deterministic) {
    const MapLayout map{batch, channels, height, width, channels_last};
    const MapLayout pooled{grad.size(0), channels, grad.size(2), grad.size(3), channels_last};
    check_area(map);
    const Tensor values = torch::stable::contiguous(grad, format(channels_last));
    const Tensor cells = torch::stable::contiguous(argmax, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    if (cells.numel() != pooled.count())
        fail("roi_pool: the forward pass was not asked for argmax, so has no gradient");
    Tensor output = new_output(grad, {batch, channels, height, width}, channels_last);
    dispatch_floating("roi_pool_backward", grad.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        check_boxes("roi_pool", data<T>(rows), pooled.batch, batch);
        const T scale = static_cast<T>(spatial_scale);
        const int32_t* at = data<int32_t>(cells);
        if (simd::level() != simd::Level::scalar) {
            const RoIOrder order(data<T>(rows), pooled.batch, batch, scale);
            const auto spread_all = channels_last ? spread_channels_last<T> : spread_contiguous<T>;
            spread_all(data<T>(values), at, order, map, pooled, mutable_data<T>(output));
        } else if (deterministic) {
            for_each_index(map.count(), RoIPoolBackwardInOrder<T>{data<T>(values), at, data<T>(rows),
                                                                  mutable_data<T>(output), map, pooled, scale});
        } else {
            torch::stable::zero_(output);
            for_each_index_in_order(pooled.count(), RoIPoolBackward<T>{data<T>(values), at, data<T>(rows),
                                                                       mutable_data<T>(output), map, pooled});
        }
    });
    return output;
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) { m.impl("roi_pool_backward", TORCH_BOX(&visionlab::roi_pool_backward)); }

// deform_ps_roi_pool. A bin reads a plane of its own for each output channel, and each class moves it elsewhere, so the
// work is one output value at a time: planes are small and stay in cache while all boxes read them. Where the channels
// of a bin move together and lie in one group, they are pooled together as in deform_roi_pool.
#include <tuple>

#include "../../scalar.h"
#include "../../tensors.h"
#include "plane_bins.h"

namespace visionlab {

namespace {

// Calls function(image, output channel, task, plane) for each bin, all planes and bins of one output channel in order.
template <class T, class Function>
void for_each_plane(const DeformPSRoIPoolGeometry<T>& geometry, const BoxesByImage& images, const T* mask,
                    const Function& function) {
    const Bins& bins = geometry.bins;
    const BoxSides<T> rows(geometry, images, 2, bins.height), columns(geometry, images, 1, bins.width);
    parallel_for(0, bins.channels, 1, [&](int64_t from, int64_t to) {
        for (int64_t channel = from; channel < to; ++channel) {
            for (int64_t n = 0; n < bins.batch; ++n) {
                if (images.first[n] == images.first[n + 1]) continue;
                for (int64_t i = 0; i < bins.height; ++i) {
                    for (int64_t j = 0; j < bins.width; ++j) {
                        const PlaneBin<T> task{&geometry,
                                               images.order.data(),
                                               &rows,
                                               &columns,
                                               images.first[n],
                                               images.first[n + 1],
                                               channel,
                                               i,
                                               j,
                                               mask};
                        function(task, (n * bins.input_channels + geometry.input_channel(channel, i, j)) *
                                           bins.map_height * bins.map_width);
                    }
                }
            }
        }
    });
}

// Adds up (boxes, groups * size, values) to (boxes, groups, values).
template <class T>
void sum_groups(const T* from, int64_t boxes, int64_t groups, int64_t size, int64_t values, T* to) {
    parallel_for(0, boxes * groups, 64, [&](int64_t first, int64_t last) {
        for (int64_t group = first; group < last; ++group) {
            for (int64_t i = 0; i < size; ++i) {
                const T* line = from + (group * size + i) * values;
                for (int64_t value = 0; value < values; ++value) to[group * values + value] += line[value];
            }
        }
    });
}

// `plane` tensors and gradients are contiguous here.
template <class T>
void move_planes(const DeformPSRoIPoolGeometry<T>& geometry, const BoxesByImage& images, const T* grad, const T* input,
                 const T* mask, T* grad_offset, T* grad_mask) {
    const Bins& bins = geometry.bins;
    const int64_t area = bins.height * bins.width, parts = 2 * bins.part_area();
    const int64_t together = channels_together(bins);
    // Channels are independent tasks, so each has a sum of its own where several share an offset or a mask.
    const bool sum_offsets = grad_offset != nullptr && together > 1, sum_masks = grad_mask != nullptr;
    const Scratch<T> offsets(sum_offsets ? bins.boxes * bins.channels * parts : 0);
    const Scratch<T> masks(sum_masks ? bins.boxes * bins.channels * area : 0);
    if (sum_offsets) std::fill_n(offsets.data(), bins.boxes * bins.channels * parts, T(0));
    if (sum_masks) std::fill_n(masks.data(), bins.boxes * bins.channels * area, T(0));
    T* into = sum_offsets ? offsets.data() : grad_offset;
    for_each_plane(geometry, images, mask, [&](const PlaneBin<T>& task, int64_t plane) {
        const int64_t bin = task.i * bins.width + task.j;
        const int64_t part = bins.part_row(task.i) * bins.part_width + bins.part_column(task.j);
        const MoveTargets<T> targets{into == nullptr ? into : into + task.channel * parts + part,
                                     sum_masks ? masks.data() + task.channel * area + bin : nullptr,
                                     bins.channels * parts, bins.part_area(), bins.channels * area};
        move_plane(task, input + plane, grad + task.channel * area + bin, bins.channels * area, targets);
    });
    if (sum_offsets) sum_groups(offsets.data(), bins.boxes, bins.classes, together, parts, grad_offset);
    if (sum_masks) sum_groups(masks.data(), bins.boxes, 1, bins.channels, area, grad_mask);
}

template <class T>
using Geometry = DeformPSRoIPoolGeometry<T>;

// Whether enough channels read the same cells to pool them together.
template <class T>
bool many_channels(const Geometry<T>& geometry) {
    return geometry.group_height * geometry.group_width == 1 && channels_together(geometry.bins) >= 8;
}

struct Settings {
    double spatial_scale;
    int64_t group_height, group_width, sample_per_part;
    double gamma;
};

// The arguments in the layout that kernels read.
struct Arguments {
    Tensor boxes, offset, mask;
    bool has_offset, has_mask;
    Settings settings;

    Arguments(const Tensor& corners, const std::optional<Tensor>& shifts, const std::optional<Tensor>& factors,
              const Settings& settings)
        : boxes(torch::stable::contiguous(corners)),
          has_offset(shifts.has_value()),
          has_mask(factors.has_value()),
          settings(settings) {
        if (has_offset) offset = torch::stable::contiguous(*shifts);
        if (has_mask) mask = torch::stable::contiguous(*factors);
    }

    Bins bins(const Tensor& input, int64_t height, int64_t width, bool channels_last) const {
        const int64_t groups = settings.group_height * settings.group_width;
        return {input.size(0),
                input.size(1),
                input.size(2),
                input.size(3),
                boxes.size(0),
                input.size(1) / groups,
                height,
                width,
                has_offset ? offset.size(1) / 2 : 0,
                has_offset ? offset.size(2) : height,
                has_offset ? offset.size(3) : width,
                channels_last};
    }
    template <class T>
    Geometry<T> geometry(const Bins& bins) const {
        return {bins,
                data<T>(boxes),
                has_offset ? data<T>(offset) : nullptr,
                T(settings.spatial_scale),
                settings.group_height,
                settings.group_width,
                settings.sample_per_part,
                T(settings.gamma)};
    }
    template <class T>
    const T* factors() const {
        return has_mask ? data<T>(mask) : nullptr;
    }
};

}  // namespace

Tensor deform_ps_roi_pool(const Tensor& input, const Tensor& boxes, std::optional<Tensor> offset,
                          std::optional<Tensor> mask, int64_t pooled_height, int64_t pooled_width, double spatial_scale,
                          int64_t group_height, int64_t group_width, int64_t sample_per_part, double gamma) {
    const Arguments arguments(boxes, offset, mask, {spatial_scale, group_height, group_width, sample_per_part, gamma});
    const bool channels_last = is_channels_last(input);
    const Bins bins = arguments.bins(input, pooled_height, pooled_width, channels_last);
    Tensor output = new_output(input, {bins.boxes, bins.channels, pooled_height, pooled_width}, channels_last);
    dispatch_floating("deform_ps_roi_pool", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        Geometry<T> geometry = arguments.geometry<T>(bins);
        const T* factor = arguments.factors<T>();
        const BoxesByImage images("deform_ps_roi_pool", geometry.boxes, bins.boxes, bins.batch);
        if (simd::level() == simd::Level::scalar) {
            const Tensor source = torch::stable::contiguous(input, format(channels_last));
            return for_each_index(bins.outputs(),
                                  PoolBins<T, Geometry<T>>{geometry, data<T>(source), factor, mutable_data<T>(output)});
        }
        if (many_channels(geometry)) {
            const Tensor source = torch::stable::contiguous(input, format(channels_last));
            const Scratch<T> copy(channels_last ? 0 : source.numel());
            if (!channels_last) to_channels_last(data<T>(source), bins, copy.data());
            return pool_channels(geometry, channels_last ? data<T>(source) : copy.data(), factor,
                                 mutable_data<T>(output));
        }
        const Tensor source = torch::stable::contiguous(input);
        Tensor values =
            channels_last ? new_output(input, {bins.boxes, bins.channels, pooled_height, pooled_width}, false) : output;
        const int64_t area = pooled_height * pooled_width;
        T* to = mutable_data<T>(values);
        for_each_plane(geometry, images, factor, [&](const PlaneBin<T>& task, int64_t plane) {
            pool_plane(task, data<T>(source) + plane, to + task.channel * area + task.i * pooled_width + task.j,
                       bins.channels * area);
        });
        if (channels_last) torch::stable::copy_(output, values);
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor> deform_ps_roi_pool_backward(const Tensor& grad, const Tensor& input,
                                                               const Tensor& boxes, std::optional<Tensor> offset,
                                                               std::optional<Tensor> mask, double spatial_scale,
                                                               int64_t group_height, int64_t group_width,
                                                               int64_t sample_per_part, double gamma, bool input_grad,
                                                               bool offset_grad, bool deterministic) {
    const Arguments arguments(boxes, offset, mask, {spatial_scale, group_height, group_width, sample_per_part, gamma});
    const bool channels_last = is_channels_last(input);
    const Bins bins = arguments.bins(input, grad.size(2), grad.size(3), channels_last);
    Tensor grad_input =
        input_grad
            ? new_output(input, {bins.batch, bins.input_channels, bins.map_height, bins.map_width}, channels_last)
            : torch::stable::new_empty(input, {0});
    const auto zeros = [&](bool wanted, const Tensor& like) {
        return wanted ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(input, {0});
    };
    Tensor grad_offset = zeros(offset_grad && offset, arguments.offset);
    Tensor grad_mask = zeros(offset_grad && mask, arguments.mask);
    dispatch_floating("deform_ps_roi_pool_backward", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const Geometry<T> geometry = arguments.geometry<T>(bins);
        const T* factor = arguments.factors<T>();
        const BoxesByImage images("deform_ps_roi_pool", geometry.boxes, bins.boxes, bins.batch);
        T* into_offset = offset_grad && offset ? mutable_data<T>(grad_offset) : nullptr;
        T* into_mask = offset_grad && mask ? mutable_data<T>(grad_mask) : nullptr;
        const bool move = into_offset != nullptr || into_mask != nullptr;
        const bool together = many_channels(geometry), in_format = together || simd::level() == simd::Level::scalar;
        const bool as_is = in_format && channels_last;
        const Tensor grads = torch::stable::contiguous(grad, format(as_is));
        const Tensor source = move ? torch::stable::contiguous(input, format(as_is)) : input;
        if (simd::level() == simd::Level::scalar) {
            if (input_grad) {
                T* into = mutable_data<T>(grad_input);
                torch::stable::zero_(grad_input);
                if (deterministic) {
                    for_each_index(bins.batch * bins.input_channels,
                                   SpreadBinsInOrder<T, Geometry<T>>{geometry, data<T>(grads), factor, into});
                } else {
                    for_each_index_in_order(bins.outputs(),
                                            SpreadBins<T, Geometry<T>>{geometry, data<T>(grads), factor, into});
                }
            }
            if (!move) return;
            const MoveBins<T, Geometry<T>> functor{geometry,
                                                   data<T>(grads),
                                                   data<T>(source),
                                                   factor,
                                                   into_offset,
                                                   into_mask,
                                                   deterministic ? std::max<int64_t>(bins.channels, 1) : 16};
            return deterministic ? for_each_index(functor.calls(), functor)
                                 : for_each_index_in_order(functor.calls(), functor);
        }
        if (together) {
            if (move) {
                const Scratch<T> copy(channels_last ? 0 : input.numel());
                if (!channels_last) to_channels_last(data<T>(source), bins, copy.data());
                move_channels(geometry, data<T>(grads), channels_last ? data<T>(source) : copy.data(), factor,
                              into_offset, into_mask);
            }
            if (input_grad) spread_channels(geometry, images, data<T>(grads), factor, mutable_data<T>(grad_input));
            return;
        }
        if (move) move_planes(geometry, images, data<T>(grads), data<T>(source), factor, into_offset, into_mask);
        if (!input_grad) return;
        Tensor planes = channels_last ? torch::stable::new_empty(input, input.sizes()) : grad_input;
        torch::stable::zero_(planes);
        const int64_t area = bins.height * bins.width;
        T* into = mutable_data<T>(planes);
        for_each_plane(geometry, images, factor, [&](const PlaneBin<T>& task, int64_t plane) {
            spread_plane(task, data<T>(grads) + task.channel * area + task.i * bins.width + task.j,
                         bins.channels * area, into + plane);
        });
        if (channels_last) torch::stable::copy_(grad_input, planes);
    });
    return {grad_input, grad_offset, grad_mask};
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("deform_ps_roi_pool", TORCH_BOX(&visionlab::deform_ps_roi_pool));
    m.impl("deform_ps_roi_pool_backward", TORCH_BOX(&visionlab::deform_ps_roi_pool_backward));
}

// deform_ps_roi_pool. A bin reads a plane of its own for each output channel, and each class moves it elsewhere, so the
// work is one output value at a time: planes are small and stay in cache while all boxes read them. Where the channels
// of a bin move together and lie in one group, they are pooled together as in deform_roi_pool.
#include "../deform_ps_roi_pool.h"

#include <tuple>

#include "../../scalar.h"
#include "../../tensors.h"
#include "shifted_bins.h"

namespace visionlab {

namespace {

constexpr int lanes = 8;              // boxes that are placed together, and cells of a row that are read together
constexpr int64_t most_samples = 16;  // along one side of a bin, on the fast path

// One side of all boxes, as the Geometry has it; one axis of `lanes` boxes is read at once.
template <class T>
struct BoxSides {
    std::vector<T> start, bin, step, length;

    BoxSides(const DeformPSRoIPoolGeometry<T>& geometry, const BoxesByImage& images, int64_t column, int64_t bins) {
        for (std::vector<T>* values : {&start, &bin, &step, &length}) values->assign(images.order.size() + lanes, T(0));
        for (size_t i = 0; i < images.order.size(); ++i) {
            const T* corners = geometry.boxes + 5 * images.order[i];
            const PixelSide<T> side(corners[column], corners[column + 2], geometry.spatial_scale);
            start[i] = side.start;
            length[i] = side.length;
            bin[i] = side.length / T(bins);
            step[i] = bin[i] / T(geometry.sample_per_part);
        }
    }
};

// Where the samples of one bin of `lanes` boxes lie along one axis: each relative to the first of the `lanes` cells
// that are read for its box.
template <class T, int Bytes>
struct Placement {
    using Boxes = Lanes<T, Bytes, lanes>;
    using V = typename Boxes::Part::type;

    T at[most_samples][lanes];     // far below 0 for a sample outside the map
    T below[most_samples][lanes];  // the cell below, where the sample moves freely; far below 0 elsewhere
    T first[lanes], end[lanes], count[lanes], fits[lanes];

    // Sample s of a box lies at start + bin_index * bin + s * step + shift.
    template <bool Slopes>
    VISIONLAB_INLINE void place(const BoxSides<T>& sides, int64_t box, int64_t bin_index, const T* shifts,
                                int64_t samples, int64_t map_size) {
        const T size = T(map_size), last = T(map_size - 1), room = T(map_size - lanes);
        for (int part = 0; part < Boxes::parts; ++part) {
            const int64_t lane = part * Boxes::Part::lanes;
            const auto load = [=](const T* from)
                                  __attribute__((always_inline)) { return Boxes::Part::load(from + lane); };
            const V step = load(sides.step.data() + box), shift = load(shifts), none = {}, outside = none - T(9);
            const V base = load(sides.start.data() + box) + T(bin_index) * load(sides.bin.data() + box);
            V low = none + size, high = none - T(1), inside_count = none;
            V positions[most_samples], clamped[most_samples];
            for (int64_t s = 0; s < samples; ++s) {
                const V position = base + T(s) * step + shift;
                V bounded = position > none ? position : none;
                bounded = bounded < last ? bounded : none + last;
                const auto inside = (position >= T(-0.5)) & (position <= last + T(0.5));
                inside_count += inside ? none + T(1) : none;
                const V lower = bounded < low ? bounded : low, upper = bounded > high ? bounded : high;
                low = inside ? lower : low;
                high = inside ? upper : high;
                positions[s] = inside ? position : outside;
                clamped[s] = bounded;
            }
            V begin = whole(low);
            begin = begin < room ? begin : none + room;
            V stop = whole(high) + T(2);
            stop = stop < size ? stop : none + size;
            for (int64_t s = 0; s < samples; ++s) {
                const auto inside = positions[s] > outside;
                Boxes::Part::store(at[s] + lane, inside ? clamped[s] - begin : outside);
                if (!Slopes) continue;
                const V cell = whole(clamped[s]);
                const auto free = (positions[s] >= none) & (cell < last);
                Boxes::Part::store(below[s] + lane, free ? cell - begin : outside);
            }
            Boxes::Part::store(first + lane, begin);
            Boxes::Part::store(end + lane, stop);
            Boxes::Part::store(count + lane, inside_count);
            Boxes::Part::store(fits + lane, stop - begin <= T(lanes) ? none + T(1) : none);
        }
    }

    // The weight of each cell that is read for one box. A sample weighs a cell by one minus its distance from it, and
    // not at all from a distance of one on.
    VISIONLAB_INLINE Boxes weights(int lane, int64_t samples) const {
        Boxes result;
        for (int part = 0; part < Boxes::parts; ++part) {
            const V none = {}, cell = Boxes::Part::load(cells + part * Boxes::Part::lanes);
            V sum = none;
            for (int64_t s = 0; s < samples; ++s) {
                const V distance = cell - at[s][lane], right = T(1) - distance, left = T(1) + distance;
                const V weight = right < left ? right : left;
                sum += weight > none ? weight : none;
            }
            result.values[part] = sum;
        }
        return result;
    }

    // How those weights change when the samples move up.
    VISIONLAB_INLINE Boxes slopes(int lane, int64_t samples) const {
        Boxes result;
        for (int part = 0; part < Boxes::parts; ++part) {
            const V none = {}, cell = Boxes::Part::load(cells + part * Boxes::Part::lanes);
            V sum = none;
            for (int64_t s = 0; s < samples; ++s) {
                const V distance = cell - below[s][lane];
                sum += distance == T(1) ? none + T(1) : none;
                sum -= distance == none ? none + T(1) : none;
            }
            result.values[part] = sum;
        }
        return result;
    }

  private:
    static constexpr T cells[lanes] = {0, 1, 2, 3, 4, 5, 6, 7};

    // Of numbers from -1 to the size of the map.
    static VISIONLAB_INLINE V whole(V value) {
        using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
        typedef Integer Integers __attribute__((vector_size(sizeof(V))));
        return __builtin_convertvector(__builtin_convertvector(value, Integers), V);
    }
};

// weights * values * factor; 0 where the weight is, even of a value that is not a number.
template <class L, class Values, class T>
VISIONLAB_INLINE L weigh(const L& weights, const Values& values, T factor) {
    L result;
    for (int i = 0; i < L::parts; ++i) {
        const typename L::Part::type none = {};
        result.values[i] = weights.values[i] != none ? weights.values[i] * values(i) * factor : none;
    }
    return result;
}

template <class L, class T>
VISIONLAB_INLINE T weighted_sum(const L& weights, const L& values, T factor) {
    return weigh(weights, [&](int i) __attribute__((always_inline)) { return values.values[i]; }, factor).sum();
}

// Bin (i, j) of one output channel, for all boxes of an image: those from `begin` to `end` in the order of images.
template <class T>
struct PlaneBin {
    const DeformPSRoIPoolGeometry<T>* geometry;
    const int64_t* order;
    const BoxSides<T>*rows, *columns;
    int64_t begin, end;
    int64_t channel, i, j;
    const T* mask;
    int64_t width() const { return geometry->bins.map_width; }
};

// Calls function(box, its index, its place in the block, rows, columns) for each box; rows and columns are null where
// the cells of the bin are too far apart to be read together.
template <int Bytes, int64_t Samples, bool Slopes, class T, class Function>
VISIONLAB_INLINE void for_each_box(const PlaneBin<T>& task, const Function& function) {
    const DeformPSRoIPoolGeometry<T>& geometry = *task.geometry;
    const Bins& bins = geometry.bins;
    const int64_t samples = Samples > 0 ? Samples : std::min(geometry.sample_per_part, most_samples);
    const bool fast = geometry.sample_per_part <= most_samples && bins.map_height >= lanes && bins.map_width >= lanes;
    const int64_t offset_at = bins.classes > 0 ? bins.offset_index(0, task.channel, task.i, task.j) : 0;
    const int64_t offset_stride = 2 * bins.classes * bins.part_area();
    Placement<T, Bytes> rows, columns;
    for (int64_t block = task.begin; block < task.end; block += lanes) {
        const int64_t count = std::min<int64_t>(lanes, task.end - block);
        T shift_x[lanes] = {}, shift_y[lanes] = {};
        for (int64_t lane = 0; lane < count && bins.classes > 0; ++lane) {
            const T* offset = geometry.offset + offset_at + task.order[block + lane] * offset_stride;
            shift_x[lane] = geometry.gamma * task.columns->length[block + lane] * offset[0];
            shift_y[lane] = geometry.gamma * task.rows->length[block + lane] * offset[bins.part_area()];
        }
        if (fast) {
            rows.template place<Slopes>(*task.rows, block, task.i, shift_y, samples, bins.map_height);
            columns.template place<Slopes>(*task.columns, block, task.j, shift_x, samples, bins.map_width);
        }
        for (int64_t lane = 0; lane < count; ++lane) {
            const bool fits = fast && rows.fits[lane] != T(0) && columns.fits[lane] != T(0);
            function(block + lane, task.order[block + lane], lane, samples, fits ? &rows : nullptr, &columns);
        }
    }
}

// One over the number of samples on the map.
template <class P>
VISIONLAB_INLINE auto mean_of(const P& rows, const P& columns, int64_t lane) {
    const auto count = rows.count[lane] * columns.count[lane];
    return count > 0 ? 1 / count : 0 * count;
}

// Writes the pooled value of each box to output[box * stride].
template <int Bytes, int64_t Samples, class T>
VISIONLAB_INLINE void pool_boxes(const PlaneBin<T>& task, const T* plane, T* output, int64_t stride) {
    using Cells = Lanes<T, Bytes, lanes>;
    using P = Placement<T, Bytes>;
    for_each_box<Bytes, Samples, false>(task, [&](int64_t, int64_t index, int64_t lane, int64_t samples, const P* rows,
                                                  const P* columns) __attribute__((always_inline)) {
        T value;
        if (rows == nullptr) {
            value = pool_bin(task.geometry->bin(index, task.channel, task.i, task.j), plane, task.width(), 1).value;
        } else {
            T weights[lanes];
            rows->weights(lane, samples).store(weights);
            const int64_t first = static_cast<int64_t>(rows->first[lane]);
            const T* line = plane + first * task.width() + static_cast<int64_t>(columns->first[lane]);
            const int64_t count = static_cast<int64_t>(rows->end[lane]) - first;
            Cells sum{};
            for (int64_t y = 0; y < count; ++y, line += task.width()) {
                if (weights[y] != T(0)) sum.add_product(Cells::load(line), weights[y]);
            }
            value = weighted_sum(columns->weights(lane, samples), sum, mean_of(*rows, *columns, lane));
        }
        const Bins& bins = task.geometry->bins;
        output[index * stride] =
            task.mask == nullptr ? value : value * task.mask[bins.bin_index(index, task.i, task.j)];
    });
}

template <int Bytes, class T>
VISIONLAB_INLINE void pool_plane_body(const PlaneBin<T>& task, const T* plane, T* output, int64_t stride) {
    if (task.geometry->sample_per_part == 4) return pool_boxes<Bytes, 4>(task, plane, output, stride);
    pool_boxes<Bytes, 0>(task, plane, output, stride);
}

VISIONLAB_SIMD_LEVELS(pool_plane, pool_plane_body)

// Adds the gradient of each box to its cells of the plane.
template <int Bytes, int64_t Samples, class T>
VISIONLAB_INLINE void spread_boxes(const PlaneBin<T>& task, const T* grad, int64_t stride, T* plane) {
    using Cells = Lanes<T, Bytes, lanes>;
    using P = Placement<T, Bytes>;
    for_each_box<Bytes, Samples, false>(task, [&](int64_t, int64_t index, int64_t lane, int64_t samples, const P* rows,
                                                  const P* columns) __attribute__((always_inline)) {
        const Bins& bins = task.geometry->bins;
        T value = grad[index * stride];
        if (task.mask != nullptr) value *= task.mask[bins.bin_index(index, task.i, task.j)];
        if (rows == nullptr) {
            const Bin<T> bin = task.geometry->bin(index, task.channel, task.i, task.j);
            spread_bin(bin, task.width(), 1, [=](int64_t cell, T weight) { plane[cell] += weight * value; });
            return;
        }
        T weights[lanes];
        rows->weights(lane, samples).store(weights);
        const int64_t first = static_cast<int64_t>(rows->first[lane]);
        T* line = plane + first * task.width() + static_cast<int64_t>(columns->first[lane]);
        const int64_t count = static_cast<int64_t>(rows->end[lane]) - first;
        const Cells spread =
            weigh(columns->weights(lane, samples), [](int) { return T(1); }, mean_of(*rows, *columns, lane) * value);
        for (int64_t y = 0; y < count; ++y, line += task.width()) {
            if (weights[y] == T(0)) continue;
            Cells sum = Cells::load(line);
            sum.add_product(spread, weights[y]);
            sum.store(line);
        }
    });
}

template <int Bytes, class T>
VISIONLAB_INLINE void spread_plane_body(const PlaneBin<T>& task, const T* grad, int64_t stride, T* plane) {
    if (task.geometry->sample_per_part == 4) return spread_boxes<Bytes, 4>(task, grad, stride, plane);
    spread_boxes<Bytes, 0>(task, grad, stride, plane);
}

VISIONLAB_SIMD_LEVELS(spread_plane, spread_plane_body)

// Where the gradients of offsets and mask, each of which may be null, lie for box 0.
template <class T>
struct MoveTargets {
    T *offset, *mask;
    int64_t offset_stride, part_area, mask_stride;
};

template <int Bytes, int64_t Samples, class T>
VISIONLAB_INLINE void move_boxes(const PlaneBin<T>& task, const T* plane, const T* grad, int64_t stride,
                                 const MoveTargets<T>& targets) {
    using Cells = Lanes<T, Bytes, lanes>;
    using P = Placement<T, Bytes>;
    for_each_box<Bytes, Samples, true>(task, [&](int64_t box, int64_t index, int64_t lane, int64_t samples,
                                                 const P* rows, const P* columns) __attribute__((always_inline)) {
        BinValue<T> value;
        if (rows == nullptr) {
            value = pool_bin(task.geometry->bin(index, task.channel, task.i, task.j), plane, task.width(), 1);
        } else {
            T weights[lanes], slopes[lanes];
            rows->weights(lane, samples).store(weights);
            rows->slopes(lane, samples).store(slopes);
            const int64_t first = static_cast<int64_t>(rows->first[lane]);
            const T* line = plane + first * task.width() + static_cast<int64_t>(columns->first[lane]);
            const int64_t count = static_cast<int64_t>(rows->end[lane]) - first;
            Cells sum{}, change{};
            for (int64_t y = 0; y < count; ++y, line += task.width()) {
                const Cells values = Cells::load(line);
                if (weights[y] != T(0)) sum.add_product(values, weights[y]);
                if (slopes[y] != T(0)) change.add_product(values, slopes[y]);
            }
            const T mean = mean_of(*rows, *columns, lane);
            const Cells along_row = columns->weights(lane, samples);
            value.along_x = weighted_sum(columns->slopes(lane, samples), sum, mean);
            value.along_y = weighted_sum(along_row, change, mean);
            if (targets.mask != nullptr) value.value = weighted_sum(along_row, sum, mean);
        }
        const DeformPSRoIPoolGeometry<T>& geometry = *task.geometry;
        T factor = grad[index * stride];
        if (targets.mask != nullptr) targets.mask[index * targets.mask_stride] += factor * value.value;
        if (targets.offset == nullptr) return;
        if (task.mask != nullptr) factor *= task.mask[geometry.bins.bin_index(index, task.i, task.j)];
        factor *= geometry.gamma;
        T* target = targets.offset + index * targets.offset_stride;
        target[0] += factor * task.columns->length[box] * value.along_x;
        target[targets.part_area] += factor * task.rows->length[box] * value.along_y;
    });
}

template <int Bytes, class T>
VISIONLAB_INLINE void move_plane_body(const PlaneBin<T>& task, const T* plane, const T* grad, int64_t stride,
                                      const MoveTargets<T>& targets) {
    if (task.geometry->sample_per_part == 4) return move_boxes<Bytes, 4>(task, plane, grad, stride, targets);
    move_boxes<Bytes, 0>(task, plane, grad, stride, targets);
}

VISIONLAB_SIMD_LEVELS(move_plane, move_plane_body)

// ---- tasks ---------------------------------------------------------------------------------------------------------

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

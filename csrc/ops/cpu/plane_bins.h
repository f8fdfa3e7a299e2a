// A moving bin of one plane, for several boxes at once: where its samples lie, what they sum up to, and its gradients.
#pragma once

#include <vector>

#include "../deform_ps_roi_pool.h"
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

}  // namespace

}  // namespace visionlab

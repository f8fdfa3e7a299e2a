// RoIPool (Girshick 2015, Fast R-CNN, arXiv:1504.08083): the greatest value of each bin. The arithmetic of all devices.
#pragma once

#include <cfloat>

#include "rois.h"

namespace visionlab {

// What a bin is compared with first: a NaN, or a value not above this, is never a maximum.
template <class T>
constexpr T roi_pool_lowest = static_cast<T>(-FLT_MAX);

template <class T>
struct RoIPoolForward {
    using A = Accumulate<T>;
    const T* input;
    const A* boxes;
    T* output;
    int32_t* argmax;  // y * width + x of the maximum, -1 for none; may be null
    MapLayout map, pooled;
    A scale;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = pooled.place(index);
        const A* box = boxes + 5 * at.n;
        const int64_t image = image_of(box, map.batch);
        A best = A(NAN);
        int32_t best_cell = -1;
        if (image >= 0) {
            const Cells rows = RoundedAxis<A>(box[2], box[4], scale, pooled.height, true).cells(at.y, map.height);
            const Cells columns = RoundedAxis<A>(box[1], box[3], scale, pooled.width, true).cells(at.x, map.width);
            const T* plane = input + map.plane(image, at.c);
            best = rows.count() > 0 && columns.count() > 0 ? roi_pool_lowest<A> : A(0);
            for (int64_t y = rows.begin; y < rows.end; ++y) {
                for (int64_t x = columns.begin; x < columns.end; ++x) {
                    const int64_t cell = y * map.width + x;
                    const A value = load(plane + cell * map.pixel_stride());
                    if (value > best) {
                        best = value;
                        best_cell = static_cast<int32_t>(cell);
                    }
                }
            }
        }
        store(output + index, best);
        if (argmax != nullptr) argmax[index] = best_cell;
    }
};

// One bin: adds its gradient to the cell of its maximum.
template <class T>
struct RoIPoolBackward {
    const T* grad;
    const int32_t* argmax;
    const Accumulate<T>* boxes;
    T* output;
    MapLayout map, pooled;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = pooled.place(index);
        const int64_t image = image_of(boxes + 5 * at.n, map.batch), cell = argmax[index];
        if (image < 0 || cell < 0 || cell >= map.area()) return;
        add(output + map.plane(image, at.c) + cell * map.pixel_stride(), load(grad + index));
    }
};

// One cell of the map: sums over the bins of which it is the maximum, always in the same order.
template <class T>
struct RoIPoolBackwardInOrder {
    using A = Accumulate<T>;
    const T* grad;
    const int32_t* argmax;
    const A* boxes;
    T* output;
    MapLayout map, pooled;
    A scale;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = map.place(index);
        const int64_t cell = at.y * map.width + at.x;
        A sum = 0;
        for (int64_t k = 0; k < pooled.batch; ++k) {
            const A* box = boxes + 5 * k;
            if (image_of(box, map.batch) != at.n) continue;
            const Cells rows = RoundedAxis<A>(box[2], box[4], scale, pooled.height, true).bins_near(at.y);
            if (rows.count() == 0) continue;
            const Cells columns = RoundedAxis<A>(box[1], box[3], scale, pooled.width, true).bins_near(at.x);
            for (int64_t y = rows.begin; y < rows.end; ++y) {
                for (int64_t x = columns.begin; x < columns.end; ++x) {
                    const int64_t bin = pooled.offset(k, at.c, y, x);
                    if (argmax[bin] == cell) sum += load(grad + bin);
                }
            }
        }
        store(output + index, sum);
    }
};

}  // namespace visionlab

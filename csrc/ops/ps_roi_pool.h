// Position-sensitive RoIPool (Dai et al. 2016, R-FCN, arXiv:1605.06409): bin (i, j) of class c is the mean of channel
// (c * height + i) * width + j over the cells of the bin. The arithmetic of all devices.
#pragma once

#include "rois.h"

namespace visionlab {

// The cells of a bin along one axis. As in torchvision, the last row and column of a map are never read.
template <class T>
VISIONLAB_HOST_DEVICE Cells ps_roi_pool_cells(const RoundedAxis<T>& axis, int64_t bin, int64_t size) {
    return axis.cells(bin, size - 1);
}

template <class T>
struct PSRoIPoolForward {
    using A = Accumulate<T>;
    const T* input;
    const A* boxes;
    T* output;
    MapLayout map, pooled;
    A scale;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = pooled.place(index);
        const A* box = boxes + 5 * at.n;
        const int64_t image = image_of(box, map.batch);
        if (image < 0) return store(output + index, A(NAN));
        const Cells rows =
            ps_roi_pool_cells(RoundedAxis<A>(box[2], box[4], scale, pooled.height, false), at.y, map.height);
        const Cells columns =
            ps_roi_pool_cells(RoundedAxis<A>(box[1], box[3], scale, pooled.width, false), at.x, map.width);
        const T* plane = input + map.plane(image, (at.c * pooled.height + at.y) * pooled.width + at.x);
        A sum = 0;
        for (int64_t y = rows.begin; y < rows.end; ++y) {
            for (int64_t x = columns.begin; x < columns.end; ++x) {
                sum += load(plane + (y * map.width + x) * map.pixel_stride());
            }
        }
        const int64_t count = rows.count() * columns.count();
        store(output + index, count > 0 ? sum / A(count) : A(0));
    }
};

// One bin: adds its share to each of its cells.
template <class T>
struct PSRoIPoolBackward {
    using A = Accumulate<T>;
    const T* grad;
    const A* boxes;
    T* output;
    MapLayout map, pooled;
    A scale;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = pooled.place(index);
        const A* box = boxes + 5 * at.n;
        const int64_t image = image_of(box, map.batch);
        if (image < 0) return;
        const Cells rows =
            ps_roi_pool_cells(RoundedAxis<A>(box[2], box[4], scale, pooled.height, false), at.y, map.height);
        const Cells columns =
            ps_roi_pool_cells(RoundedAxis<A>(box[1], box[3], scale, pooled.width, false), at.x, map.width);
        const int64_t count = rows.count() * columns.count();
        if (count == 0) return;
        T* plane = output + map.plane(image, (at.c * pooled.height + at.y) * pooled.width + at.x);
        const A share = load(grad + index) / A(count);
        for (int64_t y = rows.begin; y < rows.end; ++y) {
            for (int64_t x = columns.begin; x < columns.end; ++x) {
                add(plane + (y * map.width + x) * map.pixel_stride(), share);
            }
        }
    }
};

// One cell of the map: sums over the boxes whose bin holds it, always in the same order.
template <class T>
struct PSRoIPoolBackwardInOrder {
    using A = Accumulate<T>;
    const T* grad;
    const A* boxes;
    T* output;
    MapLayout map, pooled;
    A scale;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = map.place(index);
        const int64_t i = at.c / pooled.width % pooled.height, j = at.c % pooled.width;
        A sum = 0;
        for (int64_t k = 0; k < pooled.batch; ++k) {
            const A* box = boxes + 5 * k;
            if (image_of(box, map.batch) != at.n) continue;
            const Cells rows =
                ps_roi_pool_cells(RoundedAxis<A>(box[2], box[4], scale, pooled.height, false), i, map.height);
            if (at.y < rows.begin || at.y >= rows.end) continue;
            const Cells columns =
                ps_roi_pool_cells(RoundedAxis<A>(box[1], box[3], scale, pooled.width, false), j, map.width);
            if (at.x < columns.begin || at.x >= columns.end) continue;
            sum += load(grad + pooled.offset(k, at.c / pooled.area(), i, j)) / A(rows.count() * columns.count());
        }
        store(output + index, sum);
    }
};

}  // namespace visionlab

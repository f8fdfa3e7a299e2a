// Position-sensitive RoIAlign (Li et al. 2017, Light-Head R-CNN, arXiv:1711.07264): bin (i, j) of class c is the mean
// of samples of channel (c * height + i) * width + j. The arithmetic of all devices.
#pragma once

#include "roi_align.h"
#include "rois.h"

namespace visionlab {

// More samples than this along one side of a bin are refused: such a box is far greater than its map.
template <class T>
constexpr T ps_roi_align_most_samples = T(1 << 16);

template <class T>
struct PSRoIAlignForward {
    using A = Accumulate<T>;
    const T* input;
    const A* boxes;
    T* output;
    MapLayout map, pooled;
    A scale;
    int64_t sampling_ratio;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = pooled.place(index);
        const A* box = boxes + 5 * at.n;
        const int64_t image = image_of(box, map.batch);
        const RoIAxis<A> rows(box[2], box[4], scale, pooled.height, sampling_ratio, true);
        const RoIAxis<A> columns(box[1], box[3], scale, pooled.width, sampling_ratio, true);
        constexpr A most = ps_roi_align_most_samples<A>;
        if (image < 0 || !(rows.samples <= most && columns.samples <= most)) return store(output + index, A(NAN));
        const T* plane = input + map.plane(image, (at.c * pooled.height + at.y) * pooled.width + at.x);
        A sum = 0;
        for (int64_t a = 0; a < static_cast<int64_t>(rows.samples); ++a) {
            const LinearSample<A> y(rows.position(at.y, a), map.height);
            for (int64_t b = 0; b < static_cast<int64_t>(columns.samples); ++b) {
                const LinearSample<A> x(columns.position(at.x, b), map.width);
                sum += term(plane, y.low, x.low, y.low_weight * x.low_weight);
                sum += term(plane, y.low, x.high, y.low_weight * x.high_weight);
                sum += term(plane, y.high, x.low, y.high_weight * x.low_weight);
                sum += term(plane, y.high, x.high, y.high_weight * x.high_weight);
            }
        }
        const A count = rows.samples * columns.samples;
        store(output + index, count > A(0) ? sum / count : A(0));
    }

  private:
    // A cell of weight 0 is not read: it may hold an infinity.
    VISIONLAB_HOST_DEVICE A term(const T* plane, int64_t y, int64_t x, A weight) const {
        return weight == A(0) ? A(0) : weight * load(plane + (y * map.width + x) * map.pixel_stride());
    }
};

// One bin: adds its weighted gradient to the cells of its samples.
template <class T>
struct PSRoIAlignBackward {
    using A = Accumulate<T>;
    const T* grad;
    const A* boxes;
    T* output;
    MapLayout map, pooled;
    A scale;
    int64_t sampling_ratio;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = pooled.place(index);
        const A* box = boxes + 5 * at.n;
        const int64_t image = image_of(box, map.batch);
        const RoIAxis<A> rows(box[2], box[4], scale, pooled.height, sampling_ratio, true);
        const RoIAxis<A> columns(box[1], box[3], scale, pooled.width, sampling_ratio, true);
        constexpr A most = ps_roi_align_most_samples<A>;
        if (image < 0 || !(rows.samples <= most && columns.samples <= most)) return;
        T* plane = output + map.plane(image, (at.c * pooled.height + at.y) * pooled.width + at.x);
        const A share = load(grad + index) / (rows.samples * columns.samples);
        for (int64_t a = 0; a < static_cast<int64_t>(rows.samples); ++a) {
            const LinearSample<A> y(rows.position(at.y, a), map.height);
            for (int64_t b = 0; b < static_cast<int64_t>(columns.samples); ++b) {
                const LinearSample<A> x(columns.position(at.x, b), map.width);
                give(plane, y.low, x.low, y.low_weight * x.low_weight, share);
                give(plane, y.low, x.high, y.low_weight * x.high_weight, share);
                give(plane, y.high, x.low, y.high_weight * x.low_weight, share);
                give(plane, y.high, x.high, y.high_weight * x.high_weight, share);
            }
        }
    }

  private:
    VISIONLAB_HOST_DEVICE void give(T* plane, int64_t y, int64_t x, A weight, A share) const {
        if (weight != A(0)) add(plane + (y * map.width + x) * map.pixel_stride(), weight * share);
    }
};

// One cell of the map: sums over the boxes whose bin samples it, always in the same order.
template <class T>
struct PSRoIAlignBackwardInOrder {
    using A = Accumulate<T>;
    const T* grad;
    const A* boxes;
    T* output;
    MapLayout map, pooled;
    A scale;
    int64_t sampling_ratio;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const MapLayout::Place at = map.place(index);
        const int64_t i = at.c / pooled.width % pooled.height, j = at.c % pooled.width;
        constexpr A most = ps_roi_align_most_samples<A>;
        A sum = 0;
        for (int64_t k = 0; k < pooled.batch; ++k) {
            const A* box = boxes + 5 * k;
            if (image_of(box, map.batch) != at.n) continue;
            const RoIAxis<A> rows(box[2], box[4], scale, pooled.height, sampling_ratio, true);
            const RoIAxis<A> columns(box[1], box[3], scale, pooled.width, sampling_ratio, true);
            if (!(rows.samples <= most && columns.samples <= most)) continue;
            const A row = weight(rows, i, at.y, map.height);
            if (row == A(0)) continue;
            const A column = weight(columns, j, at.x, map.width);
            if (column == A(0)) continue;
            sum += row * column * load(grad + pooled.offset(k, at.c / pooled.area(), i, j));
        }
        store(output + index, sum);
    }

  private:
    // How much a cell counts in the mean of a bin along one axis.
    VISIONLAB_HOST_DEVICE static A weight(const RoIAxis<A>& axis, int64_t bin, int64_t cell, int64_t size) {
        const A begin = axis.start + A(bin) * axis.bin, end = begin + axis.bin;
        const A low = begin < end ? begin : end, high = begin < end ? end : begin;
        const bool first = cell == 0, last = cell == size - 1;  // which also stand for positions outside, up to a cell
        if (!((first || low <= A(cell + 2)) && (last || high >= A(cell - 2)))) return A(0);
        A sum = 0;
        for (int64_t s = 0; s < static_cast<int64_t>(axis.samples); ++s) {
            const LinearSample<A> sample(axis.position(bin, s), size);
            if (sample.low == cell) sum += sample.low_weight;
            if (sample.high == cell) sum += sample.high_weight;
        }
        return axis.samples > A(0) ? sum / axis.samples : A(0);
    }
};

}  // namespace visionlab

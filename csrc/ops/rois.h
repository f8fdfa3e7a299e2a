// What pooling boxes of a map has in common on all devices: where values lie, which image a box is of, and which cells
// the bins of a box with rounded corners cover.
#pragma once

#include "../device.h"

namespace visionlab {

// A tensor (N, C, H, W) in one of the two memory formats, and the coordinates of its values.
struct MapLayout {
    int64_t batch, channels, height, width;
    bool channels_last;

    struct Place {
        int64_t n, c, y, x;
    };

    VISIONLAB_HOST_DEVICE int64_t area() const { return height * width; }
    VISIONLAB_HOST_DEVICE int64_t count() const { return batch * channels * area(); }
    VISIONLAB_HOST_DEVICE int64_t pixel_stride() const { return channels_last ? channels : 1; }
    VISIONLAB_HOST_DEVICE int64_t plane(int64_t n, int64_t c) const {
        return n * channels * area() + (channels_last ? c : c * area());
    }
    VISIONLAB_HOST_DEVICE int64_t offset(int64_t n, int64_t c, int64_t y, int64_t x) const {
        return plane(n, c) + (y * width + x) * pixel_stride();
    }
    VISIONLAB_HOST_DEVICE Place place(int64_t offset) const {
        const int64_t n = offset / (channels * area()), inside = offset % (channels * area());
        const int64_t c = channels_last ? inside % channels : inside / area();
        const int64_t cell = channels_last ? inside / channels : inside % area();
        return {n, c, cell / width, cell % width};
    }
};

// The image that a row (image index, x1, y1, x2, y2) is of; -1 where it is none of the batch or a value is not finite.
template <class T>
VISIONLAB_HOST_DEVICE int64_t image_of(const T* box, int64_t batch) {
    for (int i = 0; i < 5; ++i) {
        if (!(box[i] - box[i] == T(0))) return -1;
    }
    return box[0] >= T(0) && box[0] < T(batch) ? static_cast<int64_t>(box[0]) : -1;
}

struct Cells {
    int64_t begin, end;
    VISIONLAB_HOST_DEVICE int64_t count() const { return end > begin ? end - begin : 0; }
    VISIONLAB_HOST_DEVICE bool contain(int64_t cell) const { return cell >= begin && cell < end; }
};

// One side of a box, rounded to whole cells of the map and cut into bins that may share the cells at their ends
// (Girshick 2015, Fast R-CNN, arXiv:1504.08083).
template <class T>
struct RoundedAxis {
    int64_t start;
    T bin;
    int64_t bins;

    // `inclusive`: the end corner is a cell of the box. Corners far outside any map are drawn nearer: their number of
    // cells must fit an integer.
    VISIONLAB_HOST_DEVICE RoundedAxis(T begin, T end, T scale, int64_t bins_of_box, bool inclusive)
        : start(round_to_cell(begin * scale)), bins(bins_of_box) {
        const int64_t length = round_to_cell(end * scale) - start + (inclusive ? 1 : 0);
        bin = T(length > 1 ? length : 1) / T(bins);
    }

    // The cells of a bin that lie in [0, limit).
    VISIONLAB_HOST_DEVICE Cells cells(int64_t i, int64_t limit) const {
        const int64_t begin = start + static_cast<int64_t>(std::floor(T(i) * bin));
        const int64_t end = start + static_cast<int64_t>(std::ceil(T(i + 1) * bin));
        return {clip(begin, limit), clip(end, limit)};
    }

    // Bins [begin, end) among which are all those that hold a cell.
    VISIONLAB_HOST_DEVICE Cells bins_near(int64_t cell) const {
        const T first = std::floor(T(cell - start) / bin) - T(1), last = std::ceil(T(cell - start + 1) / bin) + T(1);
        if (first >= T(bins) || last <= T(0)) return {0, 0};
        return {first > T(0) ? static_cast<int64_t>(first) : 0, last < T(bins) ? static_cast<int64_t>(last) : bins};
    }

  private:
    static VISIONLAB_HOST_DEVICE int64_t round_to_cell(T position) {
        const T most = T(int64_t(1) << 30);
        if (!(position < most)) return int64_t(1) << 30;
        return position > -most ? static_cast<int64_t>(std::round(position)) : -(int64_t(1) << 30);
    }
    static VISIONLAB_HOST_DEVICE int64_t clip(int64_t cell, int64_t limit) {
        return cell < 0 ? 0 : cell > limit ? limit : cell;
    }
};

}  // namespace visionlab

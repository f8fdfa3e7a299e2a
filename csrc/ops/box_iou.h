// Intersection over union of two boxes and its gradient, one pair at a time. No torch header: nvcc compiles it too.
#pragma once

#include "../device.h"

namespace visionlab {

// How the four numbers of a box are meant: two corners, a corner and sides, or a center and sides.
enum BoxFormat : int64_t { xyxy, xywh, cxcywh };

template <class T>
struct Box {
    T x1, y1, x2, y2, area;
};

// A product that is rounded before anything is added to it, so that all devices give the same bits.
VISIONLAB_HOST_DEVICE inline float product(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

VISIONLAB_HOST_DEVICE inline double product(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

// A box with a NaN has a NaN for its area, and so for every overlap: comparisons alone would lose it.
template <class T>
VISIONLAB_HOST_DEVICE inline Box<T> read_box(const T* from, int64_t format) {
    const T a = from[0], b = from[1], c = from[2], d = from[3];
    Box<T> box{a, b, c, d, T(0)};
    if (format == xyxy) {
        box.area = product(c - a, d - b);
        return box;
    }
    const bool centered = format == cxcywh;
    box.x1 = centered ? a - c / 2 : a;
    box.y1 = centered ? b - d / 2 : b;
    box.x2 = centered ? a + c / 2 : a + c;
    box.y2 = centered ? b + d / 2 : b + d;
    const bool lost = box.x1 != box.x1 || box.y1 != box.y1 || box.x2 != box.x2 || box.y2 != box.y2;
    box.area = lost ? static_cast<T>(NAN) : product(c, d);
    return box;
}

template <class T>
VISIONLAB_HOST_DEVICE inline T greater_of(T a, T b) {
    return a > b ? a : b;
}

template <class T>
VISIONLAB_HOST_DEVICE inline T lesser_of(T a, T b) {
    return a < b ? a : b;
}

template <class T>
VISIONLAB_HOST_DEVICE inline T overlap(const Box<T>& a, const Box<T>& b) {
    const T width = lesser_of(a.x2, b.x2) - greater_of(a.x1, b.x1);
    const T height = lesser_of(a.y2, b.y2) - greater_of(a.y1, b.y1);
    const T shared = product(width < T(0) ? T(0) : width, height < T(0) ? T(0) : height);
    return shared / (a.area + b.area - shared);
}

// Writes the overlap of pair `index` of `batch` matrices of (rows, columns).
template <class T>
struct BoxIoU {
    const T* boxes1;
    const T* boxes2;
    int64_t rows, columns, format;
    T* output;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const int64_t row = index / columns;
        const int64_t other = row / rows * columns + index % columns;
        output[index] = overlap(read_box(boxes1 + 4 * row, format), read_box(boxes2 + 4 * other, format));
    }
};

// The gradient of a box by its corners and by its area.
template <class T>
struct BoxGradient {
    T x1, y1, x2, y2, area;
};

// The share of a gradient that goes to `a`, which was chosen over `b` because it is greater: half of it at a tie.
template <class T>
VISIONLAB_HOST_DEVICE inline T share(T a, T b) {
    return a > b ? T(1) : (a == b ? T(0.5) : T(0));
}

// Adds to `sum` the gradient of box `a` for the gradient `grad` of its overlap with box `b`.
template <class T>
VISIONLAB_HOST_DEVICE inline void add_gradient(const Box<T>& a, const Box<T>& b, T grad, BoxGradient<T>& sum) {
    const T width = lesser_of(a.x2, b.x2) - greater_of(a.x1, b.x1);
    const T height = lesser_of(a.y2, b.y2) - greater_of(a.y1, b.y1);
    const T w = width < T(0) ? T(0) : width, h = height < T(0) ? T(0) : height;
    const T shared = w * h, together = a.area + b.area - shared;
    const T by_union = -grad * (shared / together / together);
    const T by_shared = grad / together - by_union;
    const T by_width = width < T(0) ? T(0) : by_shared * h;
    const T by_height = height < T(0) ? T(0) : by_shared * w;
    sum.x1 -= by_width * share(a.x1, b.x1);
    sum.y1 -= by_height * share(a.y1, b.y1);
    sum.x2 += by_width * share(b.x2, a.x2);
    sum.y2 += by_height * share(b.y2, a.y2);
    sum.area += by_union;
}

template <class T>
VISIONLAB_HOST_DEVICE inline void write_gradient(const T* box, const BoxGradient<T>& sum, int64_t format, T* to) {
    if (format == xyxy) {
        const T width = box[2] - box[0], height = box[3] - box[1];
        to[0] = sum.x1 - sum.area * height;
        to[1] = sum.y1 - sum.area * width;
        to[2] = sum.x2 + sum.area * height;
        to[3] = sum.y2 + sum.area * width;
        return;
    }
    to[0] = sum.x1 + sum.x2;
    to[1] = sum.y1 + sum.y2;
    to[2] = (format == cxcywh ? (sum.x2 - sum.x1) / 2 : sum.x2) + sum.area * box[3];
    to[3] = (format == cxcywh ? (sum.y2 - sum.y1) / 2 : sum.y2) + sum.area * box[2];
}

// Writes the gradient of box `index`, one of `rows` in each matrix of the batch. `grad` has any strides.
template <class T>
struct BoxIoUBackward {
    const T* grad;
    int64_t batch_stride, row_stride, column_stride;
    const T* boxes;
    const T* others;
    int64_t rows, columns, format;
    T* output;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const int64_t matrix = index / rows;
        const T* line = grad + matrix * batch_stride + index % rows * row_stride;
        const Box<T> box = read_box(boxes + 4 * index, format);
        BoxGradient<T> sum{T(0), T(0), T(0), T(0), T(0)};
        for (int64_t column = 0; column < columns; ++column) {
            const Box<T> other = read_box(others + 4 * (matrix * columns + column), format);
            add_gradient(box, other, line[column * column_stride], sum);
        }
        write_gradient(boxes + 4 * index, sum, format, output + 4 * index);
    }
};

}  // namespace visionlab

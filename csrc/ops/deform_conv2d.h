// Deformable convolution (Dai et al. 2017, arXiv:1703.06211; with mask Zhu et al. 2018, arXiv:1811.11168): where it
// samples, and the arithmetic of all devices. Maps are channels-last here; offsets and masks have any strides.
#pragma once

#include "../device.h"

namespace visionlab {

struct DeformShape {
    int64_t batch, channels, height, width;
    int64_t out_channels, out_height, out_width;
    int64_t kernel_height, kernel_width;
    int64_t stride_height, stride_width, padding_height, padding_width, dilation_height, dilation_width;
    int64_t groups, offset_groups;

    VISIONLAB_HOST_DEVICE int64_t taps() const { return kernel_height * kernel_width; }
    VISIONLAB_HOST_DEVICE int64_t pixels() const { return out_height * out_width; }
    VISIONLAB_HOST_DEVICE int64_t cells() const { return height * width; }
    // Input and output channels of a group of weights, and input channels of a group of offsets.
    VISIONLAB_HOST_DEVICE int64_t inner() const { return channels / groups; }
    VISIONLAB_HOST_DEVICE int64_t outer() const { return out_channels / groups; }
    VISIONLAB_HOST_DEVICE int64_t shared() const { return channels / offset_groups; }
};

// (N, channels, out_height, out_width) values; `data` is null where there is no such tensor.
template <class T>
struct Planes {
    T* data;
    int64_t image_stride, plane_stride, row_stride, column_stride;

    VISIONLAB_HOST_DEVICE T* at(int64_t image, int64_t plane, int64_t row, int64_t column) const {
        return data + image * image_stride + plane * plane_stride + row * row_stride + column * column_stride;
    }
};

// The four cells around a sample, of which 0 is the upper left one and 3 the lower right one. Cells outside the map
// are zeros. A sample that is not finite, or that no cell of the map is next to, is outside: it is 0, and so is all of
// its gradient.
template <class T>
struct FourCells {
    int64_t row = 0, column = 0;
    int64_t height, width;
    T down = 0, right = 0;
    bool inside;

    VISIONLAB_HOST_DEVICE FourCells(T y, T x, int64_t height, int64_t width) : height(height), width(width) {
        inside = y >= T(-1) && y < T(height) && x >= T(-1) && x < T(width);
        if (!inside) return;
        row = static_cast<int64_t>(y);
        row -= y < T(row);  // only rounded towards zero so far
        column = static_cast<int64_t>(x);
        column -= x < T(column);
        down = y - T(row);
        right = x - T(column);
    }

    VISIONLAB_HOST_DEVICE bool has(int corner) const {
        const int64_t r = row + corner / 2, c = column + corner % 2;
        return inside && r >= 0 && r < height && c >= 0 && c < width;
    }
    VISIONLAB_HOST_DEVICE int64_t cell(int corner) const { return (row + corner / 2) * width + column + corner % 2; }
    VISIONLAB_HOST_DEVICE T weight(int corner) const {
        return (corner / 2 ? down : T(1) - down) * (corner % 2 ? right : T(1) - right);
    }
    // The derivatives of the sample from the value of each corner. At a cell itself: the slope to its right and below.
    VISIONLAB_HOST_DEVICE T slope_down(const T* corners) const {
        return (T(1) - right) * (corners[2] - corners[0]) + right * (corners[3] - corners[1]);
    }
    VISIONLAB_HOST_DEVICE T slope_right(const T* corners) const {
        return (T(1) - down) * (corners[1] - corners[0]) + down * (corners[3] - corners[2]);
    }
    VISIONLAB_HOST_DEVICE T value(const T* corners) const {
        return weight(0) * corners[0] + weight(1) * corners[1] + weight(2) * corners[2] + weight(3) * corners[3];
    }
};

// An output pixel and a tap of the kernel there.
struct DeformTap {
    int64_t image, row, column, tap;

    // `pixel` counts through the batch.
    VISIONLAB_HOST_DEVICE DeformTap(const DeformShape& shape, int64_t pixel, int64_t tap)
        : image(pixel / shape.pixels()),
          row(pixel % shape.pixels() / shape.out_width),
          column(pixel % shape.out_width),
          tap(tap) {}

    template <class T, class O>
    VISIONLAB_HOST_DEVICE FourCells<T> cells(const DeformShape& shape, const Planes<O>& offset, int64_t group) const {
        const int64_t plane = 2 * (group * shape.taps() + tap);
        const int64_t y =
            row * shape.stride_height - shape.padding_height + tap / shape.kernel_width * shape.dilation_height;
        const int64_t x =
            column * shape.stride_width - shape.padding_width + tap % shape.kernel_width * shape.dilation_width;
        return {T(y) + *offset.at(image, plane, row, column), T(x) + *offset.at(image, plane + 1, row, column),
                shape.height, shape.width};
    }

    template <class M>
    VISIONLAB_HOST_DEVICE M* mask(const DeformShape& shape, const Planes<M>& planes, int64_t group) const {
        return planes.at(image, group * shape.taps() + tap, row, column);
    }
};

}  // namespace visionlab

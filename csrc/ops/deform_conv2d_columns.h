// Deformable convolution through whole columns, as CUDA computes it: the columns of a tile of pixels, and what their
// gradient gives to map, offset and mask. One call works on one sample; `lanes` neighboring calls share its channels.
#pragma once

#include "deform_conv2d.h"

namespace visionlab {

// A tile of pixels. Tensors of the dtype T, except offsets and the gradients of map and offset, which are
// Accumulate<T>.
struct DeformTile {
    DeformShape shape;
    int64_t first, count;  // pixels, counted through the batch
    const void* input;     // channels-last
    Planes<const void> offset, mask;
    void* columns;     // (groups, count, taps, inner)
    void* input_grad;  // channels-last; null where not asked for
    Planes<void> offset_grad, mask_grad;
};

template <class T, class V>
VISIONLAB_HOST_DEVICE Planes<T> typed(const Planes<V>& planes) {
    return {static_cast<T*>(planes.data), planes.image_stride, planes.plane_stride, planes.row_stride,
            planes.column_stride};
}

// One sample: its tap and pixel, its cells, its mask, and where its channels are.
template <class T>
struct DeformSample {
    using A = Accumulate<T>;
    const DeformTile& tile;
    int64_t pixel, group;
    DeformTap tap;
    FourCells<A> cells;
    A mask;

    VISIONLAB_HOST_DEVICE DeformSample(const DeformTile& tile, int64_t index)
        : tile(tile),
          pixel(index / tile.shape.offset_groups / tile.shape.taps()),
          group(index % tile.shape.offset_groups),
          tap(tile.shape, tile.first + pixel, index / tile.shape.offset_groups % tile.shape.taps()),
          cells(tap.cells<A>(tile.shape, typed<const A>(tile.offset), group)),
          mask(tile.mask.data ? load(tap.mask(tile.shape, typed<const T>(tile.mask), group)) : A(1)) {}

    VISIONLAB_HOST_DEVICE int64_t channel() const { return group * tile.shape.shared(); }
    VISIONLAB_HOST_DEVICE T* column(int64_t channel) const {
        const int64_t inner = tile.shape.inner();
        const int64_t row = (channel / inner * tile.count + pixel) * tile.shape.taps() + tap.tap;
        return static_cast<T*>(tile.columns) + row * inner + channel % inner;
    }
    VISIONLAB_HOST_DEVICE int64_t cell(int corner, int64_t channel) const {
        return (tap.image * tile.shape.cells() + cells.cell(corner)) * tile.shape.channels + channel;
    }
};

// `Span` neighboring values, moved in one go.
template <class T, int Span>
struct alignas(Span * sizeof(T)) DeformSpan {
    T values[Span];
};

template <class T, int Span>
struct DeformColumns {
    using A = Accumulate<T>;
    DeformTile tile;
    int lanes;

    VISIONLAB_HOST_DEVICE void operator()(int64_t i) const {
        using Values = DeformSpan<T, Span>;
        const DeformSample<T> sample(tile, i / lanes);
        const T* input = static_cast<const T*>(tile.input);
        for (int64_t c = i % lanes * Span; c < tile.shape.shared(); c += lanes * Span) {
            const int64_t channel = sample.channel() + c;
            A sums[Span] = {};
            for (int corner = 0; corner < 4; ++corner) {
                if (!sample.cells.has(corner)) continue;
                const Values from = *reinterpret_cast<const Values*>(input + sample.cell(corner, channel));
                const A weight = sample.cells.weight(corner) * sample.mask;
                for (int k = 0; k < Span; ++k) sums[k] += weight * load(from.values + k);
            }
            Values to;
            for (int k = 0; k < Span; ++k) store(to.values + k, sums[k]);
            *reinterpret_cast<Values*>(sample.column(channel)) = to;
        }
    }
};

// Adds to the gradients of map, offset and mask what the gradient of the columns gives them; null ones are left out.
template <class T>
struct DeformGradients {
    using A = Accumulate<T>;
    DeformTile tile;
    int lanes;

    VISIONLAB_HOST_DEVICE void operator()(int64_t i) const {
        const DeformSample<T> sample(tile, i / lanes);
        const T* input = static_cast<const T*>(tile.input);
        A* input_grad = static_cast<A*>(tile.input_grad);
        A dots[4] = {};
        for (int corner = 0; corner < 4; ++corner) {
            if (!sample.cells.has(corner)) continue;
            const A weight = sample.cells.weight(corner) * sample.mask;
            for (int64_t c = i % lanes; c < tile.shape.shared(); c += lanes) {
                const int64_t channel = sample.channel() + c;
                const A grad = load(sample.column(channel));
                const int64_t at = sample.cell(corner, channel);
                dots[corner] += grad * load(input + at);
                if (input_grad) add(input_grad + at, weight * grad);
            }
        }
        if (tile.offset_grad.data == nullptr) return;
#if defined(__CUDA_ARCH__)
        for (int corner = 0; corner < 4; ++corner) {
            for (int step = lanes / 2; step > 0; step /= 2) {
                dots[corner] += __shfl_down_sync(0xffffffffu, dots[corner], step);
            }
        }
#endif
        if (i % lanes != 0) return;
        const bool inside = sample.cells.inside;
        const int64_t plane = sample.group * tile.shape.taps() + sample.tap.tap;
        const auto offset_grad = typed<A>(tile.offset_grad);
        const auto at = [&](int64_t p) {
            return offset_grad.at(sample.tap.image, p, sample.tap.row, sample.tap.column);
        };
        *at(2 * plane) = inside ? sample.cells.slope_down(dots) * sample.mask : A(0);
        *at(2 * plane + 1) = inside ? sample.cells.slope_right(dots) * sample.mask : A(0);
        if (tile.mask_grad.data) {
            store(sample.tap.mask(tile.shape, typed<T>(tile.mask_grad), sample.group),
                  inside ? sample.cells.value(dots) : A(0));
        }
    }
};

// The map's gradient from a tile without adding to what other threads add to: a call owns one channel of one image.
template <class T>
struct DeformInputGradientInOrder {
    using A = Accumulate<T>;
    DeformTile tile;

    VISIONLAB_HOST_DEVICE void operator()(int64_t i) const {
        const DeformShape& shape = tile.shape;
        const int64_t channel = i % shape.channels, image = i / shape.channels, group = channel / shape.shared();
        const int64_t begin = image * shape.pixels(), last = tile.first + tile.count;
        const int64_t from = begin > tile.first ? begin : tile.first;
        const int64_t to = begin + shape.pixels() < last ? begin + shape.pixels() : last;
        A* input_grad = static_cast<A*>(tile.input_grad);
        for (int64_t pixel = from - tile.first; pixel < to - tile.first; ++pixel) {
            for (int64_t tap = 0; tap < shape.taps(); ++tap) {
                const DeformSample<T> sample(tile, (pixel * shape.taps() + tap) * shape.offset_groups + group);
                const A grad = load(sample.column(channel)) * sample.mask;
                for (int corner = 0; corner < 4; ++corner) {
                    if (!sample.cells.has(corner)) continue;
                    input_grad[sample.cell(corner, channel)] += sample.cells.weight(corner) * grad;
                }
            }
        }
    }
};

// Adds numbers of one dtype to numbers of the one they are summed in.
template <class T>
struct DeformAdd {
    const T* from;
    Accumulate<T>* to;

    VISIONLAB_HOST_DEVICE void operator()(int64_t i) const { to[i] += load(from + i); }
};

}  // namespace visionlab

// What the forward and the backward pass of the deformable convolution share on the CPU: the map in pieces that fit
// near the cores, and the columns, which are the samples that the kernel's weights multiply.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../../channels.h"
#include "../../gemm.h"
#include "../../tensors.h"
#include "../deform_conv2d.h"

namespace visionlab::deform {

template <class T>
struct Arguments {
    DeformShape shape;
    const T* input;
    const T* weight;
    bool channels_last;         // the input; what is computed for it then is too
    bool weight_channels_last;  // (out_channels, kernel, inner) in memory, otherwise (out_channels, inner, kernel)
    Planes<const T> offset, mask;

    int64_t weight_stride() const { return shape.taps() * shape.inner(); }
};

// Input channels of one group of weights.
struct Part {
    int64_t group, channel, channels;
};

// A channels-last piece of the map: some images, some channels.
template <class T>
struct Piece {
    const T* map;          // of the first channel
    int64_t pixel_stride;  // in values; the cells of an image lie side by side, and so do the images
    int64_t image, images, channel, channels;

    int64_t offset(const DeformShape& shape, int64_t at_image, int64_t at_channel) const {
        return (at_image - image) * shape.cells() * pixel_stride + at_channel - channel;
    }
    std::vector<Part> parts(const DeformShape& shape) const {
        std::vector<Part> parts;
        for (int64_t from = channel; from < channel + channels;) {
            const int64_t group = from / shape.inner();
            const int64_t to = std::min((group + 1) * shape.inner(), channel + channels);
            parts.push_back({group, from, to - from});
            from = to;
        }
        return parts;
    }
};

constexpr int64_t copy_bytes = 6 << 20;  // of the map; only where 16 channels of one image need more, they get it

// A parallel loop in which no task is too short to be worth a thread. `cost` is about the cycles of one round.
template <class Function>
void parallel(int64_t count, int64_t cost, const Function& function) {
    parallel_for(0, count, std::max<int64_t>(1, 100000 / std::max<int64_t>(cost, 1)), function);
}

// Calls function(cell, cells, image) in parallel for short stretches of cells.
template <class Function>
void for_each_stretch(int64_t images, int64_t cells, int64_t channels, const Function& function) {
    constexpr int64_t most = 256;
    const int64_t stretches = (cells + most - 1) / most;
    parallel(images * stretches, most * channels, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
            const int64_t cell = i % stretches * most;
            function(cell, std::min(most, cells - cell), i / stretches);
        }
    });
}

// Calls function(piece) for pieces that cover the map. A channels-last map is one piece; of any other, copies are.
template <class T, class Function>
void for_each_piece(const Arguments<T>& arguments, const Function& function) {
    const DeformShape& shape = arguments.shape;
    if (arguments.channels_last) {
        function(Piece<T>{arguments.input, shape.channels, 0, shape.batch, 0, shape.channels});
        return;
    }
    const int64_t budget = copy_bytes / static_cast<int64_t>(sizeof(T)), cells = std::max<int64_t>(shape.cells(), 1);
    const int64_t most_images = std::clamp<int64_t>(budget / (cells * shape.channels), 1, shape.batch);
    const int64_t most_channels =
        std::min(shape.channels, std::max<int64_t>(budget / (cells * most_images) / 16 * 16, 16));
    const Scratch<T> copy(most_images * shape.cells() * most_channels);
    for (int64_t image = 0; image < shape.batch; image += most_images) {
        for (int64_t channel = 0; channel < shape.channels; channel += most_channels) {
            const int64_t images = std::min(most_images, shape.batch - image);
            const int64_t channels = std::min(most_channels, shape.channels - channel);
            for_each_stretch(images, shape.cells(), channels, [&](int64_t cell, int64_t cells, int64_t i) {
                const T* from = arguments.input + ((image + i) * shape.channels + channel) * shape.cells() + cell;
                transpose(from, shape.cells(), channels, cells, copy.data() + (i * shape.cells() + cell) * channels,
                          channels);
            });
            function(Piece<T>{copy.data(), channels, image, images, channel, channels});
        }
    }
}

// Where a sample reads, and how much of it each corner is; corners outside the map are read from zeros.
template <class T>
struct Corners {
    const T* from[4];
    T weights[4];
};

// Calls function(i, tap, cells, mask) for `count` pixels from `pixel` on, which counts through the batch.
template <class T, class Function>
VISIONLAB_INLINE void for_each_sample(const Arguments<T>& arguments, int64_t pixel, int64_t count, int64_t tap,
                                      int64_t group, const Function& function) {
    const DeformShape& shape = arguments.shape;
    DeformTap at(shape, pixel, tap);
    for (int64_t i = 0; i < count; ++i) {
        const FourCells<T> cells = at.cells<T>(shape, arguments.offset, group);
        function(i, at, cells, arguments.mask.data ? *at.mask(shape, arguments.mask, group) : T(1));
        if (++at.column < shape.out_width) continue;
        at.column = 0;
        if (++at.row < shape.out_height) continue;
        at.row = 0;
        ++at.image;
    }
}

template <int Bytes, class T>
VISIONLAB_INLINE void sample_body(const Arguments<T>& arguments, const Piece<T>& piece, const T* const& zeros,
                                  int64_t pixel, int64_t count, int64_t tap, int64_t channel, int64_t channels,
                                  T* const& columns, int64_t stride) {
    const DeformShape& shape = arguments.shape;
    for_each_sample(
        arguments, pixel, count, tap, channel / shape.shared(),
        [&](int64_t i, const DeformTap& at, const FourCells<T>& cells, T mask) __attribute__((always_inline)) {
            const T* map = piece.map + piece.offset(shape, at.image, channel);
            Corners<T> corners;
            for (int corner = 0; corner < 4; ++corner) {
                corners.from[corner] = cells.has(corner) ? map + cells.cell(corner) * piece.pixel_stride : zeros;
                corners.weights[corner] = cells.weight(corner) * mask;
            }
            const T *a = corners.from[0], *b = corners.from[1], *c = corners.from[2], *d = corners.from[3];
            const T wa = corners.weights[0], wb = corners.weights[1], wc = corners.weights[2], wd = corners.weights[3];
            T* to = columns + i * stride;
            for_each_channel<T, Bytes>(channels,
                                       [&](auto vector, auto vectors, int64_t first) __attribute__((always_inline)) {
                                           using V = decltype(vector);
#pragma GCC unroll 4
                                           for (int v = 0; v < decltype(vectors)::value; ++v) {
                                               const int64_t k = first + v * V::lanes;
                                               V::store(to + k, (wa * V::load(a + k) + wb * V::load(b + k)) +
                                                                    (wc * V::load(c + k) + wd * V::load(d + k)));
                                           }
                                       });
        });
}

// Writes to each row of `columns` the sample of some channels at one tap of one pixel. `zeros` is as long.
VISIONLAB_SIMD_LEVELS(sample, sample_body)

template <class T>
void forward(const Arguments<T>& arguments, const T* bias, T* output);
template <class T>
void weight_gradient(const Arguments<T>& arguments, const T* grad, T* weight_grad);
// Null pointers are not computed.
template <class T>
void input_gradients(const Arguments<T>& arguments, const T* grad, T* input_grad, const Planes<T>& offset_grad,
                     const Planes<T>& mask_grad);

}  // namespace visionlab::deform

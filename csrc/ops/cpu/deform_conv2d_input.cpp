// Deformable convolution backward, the map, the offsets and the mask. A task owns some channels of one image: it makes
// the gradient of their columns tile by tile, adds it to the map while it is in the cache, and keeps the sums over its
// channels that the offsets and the mask need; these are put together afterwards in the order of the channels.
#include "deform_conv2d.h"

namespace visionlab::deform {

namespace {

constexpr int64_t tile_pixels = 72;
constexpr int64_t band_channels = 32;
constexpr int64_t most_depth = 256;         // output channels multiplied at once
constexpr int64_t partial_bytes = 2 << 20;  // of the sums over channels
constexpr int64_t grad_bytes = 2 << 20;     // of the copy of the output's gradient

// Some channels within a group of weights and a group of offsets.
struct Band {
    int64_t group, channel, channels;
    int64_t packed;  // where its weights begin
};

template <class T>
std::vector<Band> make_bands(const DeformShape& shape, const std::vector<Part>& parts) {
    const int64_t width = gemm::panel_width<T>();
    std::vector<Band> bands;
    int64_t packed = 0;
    for (const Part& part : parts) {
        for (int64_t channel = part.channel; channel < part.channel + part.channels;) {
            const int64_t end = std::min((channel / shape.shared() + 1) * shape.shared(), part.channel + part.channels);
            const int64_t channels = std::min(end - channel, band_channels);
            bands.push_back({part.group, channel, channels, packed});
            packed += (channels + width - 1) / width * width * shape.taps() * shape.outer();
            channel += channels;
        }
    }
    return bands;
}

// The weights of each band and tap as panels of channels; a panel's rows are the output channels.
template <class T>
class Weights {
  public:
    Weights(const Arguments<T>& arguments, const std::vector<Band>& bands)
        : taps_(arguments.shape.taps()),
          outer_(arguments.shape.outer()),
          width_(gemm::panel_width<T>()),
          packed_(bands.empty() ? 0 : bands.back().packed + padded(bands.back()) * taps_ * outer_) {
        constexpr int64_t most = 16;  // output channels at a time
        const int64_t blocks = (outer_ + most - 1) / most;
        const int64_t count = static_cast<int64_t>(bands.size()) * blocks;
        parallel(count, most * band_channels * taps_, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) {
                pack(arguments, bands[i / blocks], i % blocks * most, std::min(i % blocks * most + most, outer_));
            }
        });
    }

    gemm::Panels<T> from(const Band& band, int64_t tap, int64_t out) const {
        return {packed_.data() + band.packed + tap * padded(band) * outer_ + out * width_, outer_ * width_};
    }

  private:
    int64_t padded(const Band& band) const { return (band.channels + width_ - 1) / width_ * width_; }

    void pack(const Arguments<T>& arguments, const Band& band, int64_t begin, int64_t end) const {
        const DeformShape& shape = arguments.shape;
        const int64_t inner = band.channel - band.group * shape.inner();
        const int64_t tap_step = arguments.weight_channels_last ? shape.inner() : 1;
        const int64_t channel_step = arguments.weight_channels_last ? 1 : taps_;
        T* panels = packed_.data() + band.packed;
        for (int64_t out = begin; out < end; ++out) {
            const T* from =
                arguments.weight + (band.group * outer_ + out) * arguments.weight_stride() + inner * channel_step;
            for (int64_t first = 0; first < band.channels; first += width_) {
                const int64_t count = std::min(width_, band.channels - first);
                for (int64_t tap = 0; tap < taps_; ++tap) {
                    T* row = panels + tap * padded(band) * outer_ + first * outer_ + out * width_;
                    for (int64_t c = 0; c < count; ++c) row[c] = from[tap * tap_step + (first + c) * channel_step];
                    std::fill(row + count, row + width_, T(0));
                }
            }
        }
    }

    int64_t taps_, outer_, width_;
    Scratch<T> packed_;
};

// Where a sample reads and where its gradient goes; what lies outside the map is read from zeros and goes to waste.
template <class T>
struct Corners {
    const T* from[4];
    T* to[4];
    T weights[4];
    const FourCells<T>* cells;
    T mask;
};

// Adds to the map what one sample gives to its corners, and returns in `dots` the sums over channels of column
// gradient times corner.
template <class V, int Count, class T>
VISIONLAB_INLINE void spread(const Corners<T>& corners, const T* grad, int64_t channel, bool to_map, bool to_offset,
                             T* dots) {
    typename V::type grads[Count];
#pragma GCC unroll 4
    for (int v = 0; v < Count; ++v) grads[v] = V::load(grad + channel + v * V::lanes);
    if (to_map) {
        for (int corner = 0; corner < 4; ++corner) {
            T* to = corners.to[corner] + channel;
#pragma GCC unroll 4
            for (int v = 0; v < Count; ++v) {
                V::store(to + v * V::lanes, V::load(to + v * V::lanes) + corners.weights[corner] * grads[v]);
            }
        }
    }
    if (!to_offset) return;
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
        const T* from = corners.from[corner] + channel;
        typename V::type sum = {};
#pragma GCC unroll 4
        for (int v = 0; v < Count; ++v) sum += grads[v] * V::load(from + v * V::lanes);
        T lanes[V::lanes];
        V::store(lanes, sum);
#pragma GCC unroll 5
        for (int half = V::lanes / 2; half > 0; half /= 2) {
            for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
        }
        dots[corner] += lanes[0];
    }
}

// What a task needs to spread the gradient of the columns of one band.
template <class T>
struct Target {
    T* map_grad;  // laid out as the piece; null where it is not asked for
    const T* zeros;
    T* waste;
    T* partial;  // (3, band): sums for the mask, the vertical and the horizontal offset; null where not asked for
    int64_t partial_stride;
};

template <int Bytes, class T>
VISIONLAB_INLINE void spread_body(const Arguments<T>& arguments, const Piece<T>& piece, int64_t pixel, int64_t count,
                                  int64_t tap, const Band& band, const T* const& columns, const Target<T>& target) {
    const DeformShape& shape = arguments.shape;
    for_each_sample(
        arguments, pixel, count, tap, band.channel / shape.shared(),
        [&](int64_t i, const DeformTap& at, const FourCells<T>& cells, T mask) __attribute__((always_inline)) {
            T sums[3] = {};
            if (cells.inside) {
                const int64_t offset = piece.offset(shape, at.image, band.channel);
                Corners<T> corners;
                for (int corner = 0; corner < 4; ++corner) {
                    const bool has = cells.has(corner);
                    const int64_t cell = offset + cells.cell(corner) * piece.pixel_stride;
                    corners.from[corner] = has ? piece.map + cell : target.zeros;
                    corners.to[corner] = has ? target.map_grad + cell : target.waste;
                    corners.weights[corner] = cells.weight(corner) * mask;
                }
                T dots[4] = {};
                for_each_channel<T, Bytes>(
                    band.channels, [&](auto vector, auto vectors, int64_t channel) __attribute__((always_inline)) {
                        spread<decltype(vector), decltype(vectors)::value>(corners, columns + i * band_channels,
                                                                           channel, target.map_grad != nullptr,
                                                                           target.partial != nullptr, dots);
                    });
                sums[0] = cells.value(dots);
                sums[1] = cells.slope_down(dots) * mask;
                sums[2] = cells.slope_right(dots) * mask;
            }
            if (target.partial == nullptr) return;
            for (int kind = 0; kind < 3; ++kind) target.partial[kind * target.partial_stride + i] = sums[kind];
        });
}

VISIONLAB_SIMD_LEVELS(spread_columns, spread_body)

// Adds the sums over each band to the gradients of offset and mask.
template <class T>
void add_partial(const Arguments<T>& arguments, const std::vector<Band>& bands, const T* partial, int64_t pixel,
                 int64_t pixels, const Planes<T>& offset_grad, const Planes<T>& mask_grad) {
    const DeformShape& shape = arguments.shape;
    const int64_t taps = shape.taps(), cost = 4 * static_cast<int64_t>(bands.size());
    parallel(taps * pixels, cost, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
            const DeformTap at(shape, pixel + i % pixels, i / pixels);
            for (std::size_t band = 0; band < bands.size();) {
                const int64_t group = bands[band].channel / shape.shared();
                T sums[3] = {};
                for (; band < bands.size() && bands[band].channel / shape.shared() == group; ++band) {
                    for (int64_t kind = 0; kind < 3; ++kind) {
                        sums[kind] += partial[((band * taps + at.tap) * 3 + kind) * pixels + i % pixels];
                    }
                }
                const int64_t plane = group * taps + at.tap;
                if (mask_grad.data) *mask_grad.at(at.image, plane, at.row, at.column) += sums[0];
                *offset_grad.at(at.image, 2 * plane, at.row, at.column) += sums[1];
                *offset_grad.at(at.image, 2 * plane + 1, at.row, at.column) += sums[2];
            }
        }
    });
}

// The gradient of the output with a row for each pixel; `copy` holds it where it does not lie like that.
template <class T>
const T* pixel_rows(const Arguments<T>& arguments, const T* grad, int64_t pixel, int64_t pixels, T* copy) {
    const DeformShape& shape = arguments.shape;
    const int64_t outs = shape.out_channels;
    if (arguments.channels_last) return grad + pixel * outs;
    parallel((pixels + tile_pixels - 1) / tile_pixels, tile_pixels * outs, [&](int64_t from, int64_t to) {
        const int64_t last = std::min(to * tile_pixels, pixels);
        for (int64_t p = from * tile_pixels; p < last;) {
            const int64_t image = (pixel + p) / shape.pixels(), at = (pixel + p) % shape.pixels();
            const int64_t some = std::min(last - p, shape.pixels() - at);
            transpose(grad + image * outs * shape.pixels() + at, shape.pixels(), outs, some, copy + p * outs, outs);
            p += some;
        }
    });
    return copy;
}

}  // namespace

template <class T>
void input_gradients(const Arguments<T>& arguments, const T* grad, T* input_grad, const Planes<T>& offset_grad,
                     const Planes<T>& mask_grad) {
    const DeformShape& shape = arguments.shape;
    const int64_t taps = shape.taps(), outs = shape.out_channels, size = sizeof(T);
    for_each_piece(arguments, [&](const Piece<T>& piece) {
        const std::vector<Band> bands = make_bands<T>(shape, piece.parts(shape));
        const int64_t count = static_cast<int64_t>(bands.size());
        const Weights<T> weights(arguments, bands);
        const std::vector<T> zeros(band_channels, T(0));
        const bool copied = input_grad && !arguments.channels_last;
        const int64_t values = piece.images * shape.cells() * piece.channels;
        const Scratch<T> copy(copied ? values : 0);
        T* map_grad = copied ? copy.data() : input_grad;
        if (map_grad) {
            for_each_stretch(piece.images, shape.cells(), piece.channels, [&](int64_t cell, int64_t cells, int64_t i) {
                std::fill_n(map_grad + (i * shape.cells() + cell) * piece.channels, cells * piece.channels, T(0));
            });
        }
        const int64_t most =
            std::max<int64_t>(
                std::min(partial_bytes / (count * taps * 3 * size), grad_bytes / (outs * size)) / tile_pixels, 1) *
            tile_pixels;
        const Scratch<T> partial(offset_grad.data ? count * taps * 3 * most : 0);
        const Scratch<T> grad_copy(arguments.channels_last ? 0 : most * outs);
        const int64_t last = (piece.image + piece.images) * shape.pixels();
        for (int64_t pixel = piece.image * shape.pixels(); pixel < last; pixel += most) {
            const int64_t pixels = std::min(most, last - pixel), first_image = pixel / shape.pixels();
            const int64_t images = (pixel + pixels - 1) / shape.pixels() - first_image + 1;
            const T* rows = pixel_rows(arguments, grad, pixel, pixels, grad_copy.data());
            const int64_t cost = pixels / images * taps * band_channels * (shape.outer() / 16 + 4);
            parallel(count * images, cost, [&](int64_t from, int64_t to) {
                const Scratch<T> columns(tile_pixels * band_channels), waste(band_channels);
                std::fill_n(waste.data(), band_channels, T(0));
                for (int64_t task = from; task < to; ++task) {
                    const Band& band = bands[task % count];
                    const int64_t image = first_image + task / count;
                    const int64_t end = std::min((image + 1) * shape.pixels(), pixel + pixels);
                    for (int64_t p = std::max(image * shape.pixels(), pixel); p < end; p += tile_pixels) {
                        const int64_t some = std::min(tile_pixels, end - p);
                        for (int64_t tap = 0; tap < taps; ++tap) {
                            for (int64_t out = 0; out < shape.outer(); out += most_depth) {
                                const T* left = rows + (p - pixel) * outs + band.group * shape.outer() + out;
                                gemm::multiply(gemm::Left<T>{left, outs, 1}, weights.from(band, tap, out), some,
                                               band.channels, std::min(most_depth, shape.outer() - out),
                                               gemm::Result<T>{columns.data(), band_channels, out > 0});
                            }
                            T* sums = offset_grad.data
                                          ? partial.data() + (task % count * taps + tap) * 3 * pixels + (p - pixel)
                                          : nullptr;
                            spread_columns(arguments, piece, p, some, tap, band, static_cast<const T*>(columns.data()),
                                           Target<T>{map_grad, zeros.data(), waste.data(), sums, pixels});
                        }
                    }
                }
            });
            if (offset_grad.data) {
                add_partial(arguments, bands, partial.data(), pixel, pixels, offset_grad, mask_grad);
            }
        }
        if (!copied) return;
        for_each_stretch(piece.images, shape.cells(), piece.channels, [&](int64_t cell, int64_t cells, int64_t i) {
            T* to = input_grad + ((piece.image + i) * shape.channels + piece.channel) * shape.cells() + cell;
            transpose(map_grad + (i * shape.cells() + cell) * piece.channels, piece.channels, cells, piece.channels, to,
                      shape.cells());
        });
    });
}

template void input_gradients(const Arguments<float>&, const float*, float*, const Planes<float>&,
                              const Planes<float>&);
template void input_gradients(const Arguments<double>&, const double*, double*, const Planes<double>&,
                              const Planes<double>&);

}  // namespace visionlab::deform

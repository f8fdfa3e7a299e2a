// Deformable convolution forward: columns of a tile of pixels are sampled and multiplied while they are in the cache.
#include "deform_conv2d.h"

namespace visionlab::deform {

namespace {

constexpr int64_t most_pixels = 72;  // of a tile
constexpr int64_t most_depth = 256;  // columns that are sampled before they are multiplied
constexpr int64_t columns_stride = most_depth + 16;

// Weights of the parts of a piece as panels of output channels; a panel's rows are (tap, channel).
template <class T>
class Weights {
  public:
    Weights(const Arguments<T>& arguments, const std::vector<Part>& parts)
        : shape_(arguments.shape), width_(gemm::panel_width<T>()), panels_((shape_.outer() + width_ - 1) / width_) {
        int64_t size = 0;
        for (const Part& part : parts) {
            starts_.push_back(size);
            size += panels_ * width_ * depth(part);
        }
        packed_ = std::make_unique<Scratch<T>>(size);
        for (std::size_t i = 0; i < parts.size(); ++i) pack(arguments, parts[i], packed_->data() + starts_[i]);
    }

    int64_t depth(const Part& part) const { return shape_.taps() * part.channels; }

    gemm::Panels<T> from(std::size_t part, int64_t depth, int64_t row) const {
        return {packed_->data() + starts_[part] + row * width_, depth * width_};
    }

  private:
    void pack(const Arguments<T>& arguments, const Part& part, T* to) const {
        constexpr int64_t block = 16;  // channels at a time
        const int64_t taps = shape_.taps(), stride = arguments.weight_stride();
        const int64_t blocks = (part.channels + block - 1) / block;
        const int64_t inner = part.channel - part.group * shape_.inner();
        parallel(panels_ * blocks, block * taps * width_, [&](int64_t begin, int64_t end) {
            const Scratch<T> lines(block * taps * width_);
            std::fill_n(lines.data(), block * taps * width_, T(0));
            for (int64_t i = begin; i < end; ++i) {
                const int64_t out = i / blocks * width_, channel = i % blocks * block;
                const int64_t count = std::min(block, part.channels - channel);
                const int64_t outs = std::min(width_, shape_.outer() - out);
                const T* from = arguments.weight + (part.group * shape_.outer() + out) * stride;
                T* panel = to + out * depth(part);
                if (outs < width_) std::fill_n(lines.data(), block * taps * width_, T(0));
                if (arguments.weight_channels_last) {
                    for (int64_t tap = 0; tap < taps; ++tap) {
                        transpose(from + tap * shape_.inner() + inner + channel, stride, outs, count,
                                  lines.data() + tap * count * width_, width_);
                        std::copy_n(lines.data() + tap * count * width_, count * width_,
                                    panel + (tap * part.channels + channel) * width_);
                    }
                } else {
                    transpose(from + (inner + channel) * taps, stride, outs, count * taps, lines.data(), width_);
                    for (int64_t k = 0; k < count * taps; ++k) {
                        std::copy_n(lines.data() + k * width_, width_,
                                    panel + (k % taps * part.channels + channel + k / taps) * width_);
                    }
                }
            }
        });
    }

    DeformShape shape_;
    int64_t width_, panels_;
    std::vector<int64_t> starts_;
    std::unique_ptr<Scratch<T>> packed_;
};

// Adds what some pixels get from a piece to `sums`, a row of out_channels for each pixel.
template <class T>
void add_tile(const Arguments<T>& arguments, const Piece<T>& piece, const std::vector<Part>& parts,
              const Weights<T>& weights, int64_t pixel, int64_t count, const T* zeros, T* columns, T* sums) {
    const DeformShape& shape = arguments.shape;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const Part& part = parts[i];
        const int64_t depth = weights.depth(part);
        for (int64_t begin = 0; begin < depth; begin += most_depth) {
            const int64_t end = std::min(begin + most_depth, depth);
            for (int64_t k = begin; k < end;) {
                const int64_t tap = k / part.channels, channel = part.channel + k % part.channels;
                const int64_t last =
                    std::min((channel / shape.shared() + 1) * shape.shared(), part.channel + part.channels);
                const int64_t channels = std::min(last - channel, end - k);
                sample(arguments, piece, zeros, pixel, count, tap, channel, channels, columns + (k - begin),
                       columns_stride);
                k += channels;
            }
            gemm::multiply(gemm::Left<T>{columns, columns_stride, 1}, weights.from(i, depth, begin), count,
                           shape.outer(), end - begin,
                           gemm::Result<T>{sums + part.group * shape.outer(), shape.out_channels, true});
        }
    }
}

// Calls function(first pixel of the tile, image, its pixel, pixels) for the pixels of a tile, one image at a time.
template <class Function>
void for_each_image(const DeformShape& shape, int64_t pixel, int64_t count, const Function& function) {
    for (int64_t i = 0; i < count;) {
        const int64_t image = (pixel + i) / shape.pixels(), at = (pixel + i) % shape.pixels();
        const int64_t pixels = std::min(count - i, shape.pixels() - at);
        function(i, image, at, pixels);
        i += pixels;
    }
}

// As many pixels as give every thread equally many tiles; how pixels are shared out changes no bit.
int64_t choose_tile(int64_t pixels) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t tiles = (pixels + threads * most_pixels - 1) / (threads * most_pixels) * threads;
    return std::max<int64_t>((pixels + tiles * 6 - 1) / (tiles * 6) * 6, 6);
}

}  // namespace

template <class T>
void forward(const Arguments<T>& arguments, const T* bias, T* output) {
    const DeformShape& shape = arguments.shape;
    const int64_t outs = shape.out_channels;
    for_each_piece(arguments, [&](const Piece<T>& piece) {
        const std::vector<Part> parts = piece.parts(shape);
        const Weights<T> weights(arguments, parts);
        const std::vector<T> zeros(piece.channels, T(0));
        const int64_t first = piece.image * shape.pixels(), pixels = piece.images * shape.pixels();
        const int64_t tile = choose_tile(pixels);
        const int64_t cost = tile * shape.taps() * piece.channels * (shape.outer() / 16 + 1);
        parallel((pixels + tile - 1) / tile, cost, [&](int64_t from, int64_t to) {
            const Scratch<T> columns(tile * columns_stride), rows(arguments.channels_last ? 0 : tile * outs);
            for (int64_t i = from; i < to; ++i) {
                const int64_t pixel = first + i * tile, count = std::min(tile, first + pixels - pixel);
                T* sums = arguments.channels_last ? output + pixel * outs : rows.data();
                if (piece.channel == 0) {
                    for (int64_t p = 0; p < count; ++p) {
                        if (bias) {
                            std::copy_n(bias, outs, sums + p * outs);
                        } else {
                            std::fill_n(sums + p * outs, outs, T(0));
                        }
                    }
                } else {
                    for_each_image(shape, pixel, count, [&](int64_t p, int64_t image, int64_t at, int64_t some) {
                        transpose(output + image * outs * shape.pixels() + at, shape.pixels(), outs, some,
                                  sums + p * outs, outs);
                    });
                }
                add_tile(arguments, piece, parts, weights, pixel, count, zeros.data(), columns.data(), sums);
                if (arguments.channels_last) continue;
                for_each_image(shape, pixel, count, [&](int64_t p, int64_t image, int64_t at, int64_t some) {
                    transpose(sums + p * outs, outs, some, outs, output + image * outs * shape.pixels() + at,
                              shape.pixels());
                });
            }
        });
    });
}

template void forward(const Arguments<float>&, const float*, float*);
template void forward(const Arguments<double>&, const double*, double*);

}  // namespace visionlab::deform

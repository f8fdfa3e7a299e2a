// Deformable convolution backward, the weights: a task owns some rows of the gradient and goes through all pixels.
#include "deform_conv2d.h"

namespace visionlab::deform {

namespace {

constexpr int64_t block = 128;  // pixels whose columns are sampled before they are multiplied
constexpr int64_t run_channels = 64;
constexpr int64_t run_stride =
    run_channels + 16;  // not a power of two: its lines would fall on one another in the cache
constexpr int64_t panel_bytes = 2 << 20;

// Some channels of one tap, within a group of weights and a group of offsets.
struct Run {
    int64_t group, tap, channel, channels;
    int64_t row;  // of the gradient
};

std::vector<Run> make_runs(const DeformShape& shape, const std::vector<Part>& parts) {
    std::vector<Run> runs;
    int64_t row = 0;
    for (const Part& part : parts) {
        for (int64_t tap = 0; tap < shape.taps(); ++tap) {
            for (int64_t channel = part.channel; channel < part.channel + part.channels;) {
                const int64_t end =
                    std::min((channel / shape.shared() + 1) * shape.shared(), part.channel + part.channels);
                const int64_t channels = std::min(end - channel, run_channels);
                runs.push_back({part.group, tap, channel, channels, row});
                row += channels;
                channel += channels;
            }
        }
    }
    return runs;
}

// The gradient of the output for some pixels, as panels of output channels group by group.
template <class T>
class Grads {
  public:
    explicit Grads(const DeformShape& shape)
        : shape_(shape),
          width_(gemm::panel_width<T>()),
          panels_((shape.outer() + width_ - 1) / width_),
          columns_(shape.groups * panels_ * width_),
          most_(std::max<int64_t>(panel_bytes / static_cast<int64_t>(sizeof(T)) / columns_ / block, 1) * block),
          packed_(most_ * columns_) {}

    int64_t most() const { return most_; }

    void pack(const Arguments<T>& arguments, const T* grad, int64_t pixel, int64_t count) {
        const int64_t pieces = (count + block - 1) / block;
        parallel(pieces * shape_.groups * panels_, block * width_, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t panel = i / pieces, from = i % pieces * block, to = std::min(from + block, count);
                const int64_t out = panel % panels_ * width_, outs = std::min(width_, shape_.outer() - out);
                pack_panel(arguments, grad, panel / panels_ * shape_.outer() + out, outs, pixel, from, to,
                           packed_.data() + panel * width_ * most_);
            }
        });
    }

    gemm::Panels<T> from(int64_t group, int64_t row) const {
        return {packed_.data() + (group * panels_ * most_ + row) * width_, most_ * width_};
    }

  private:
    void pack_panel(const Arguments<T>& arguments, const T* grad, int64_t out, int64_t outs, int64_t pixel,
                    int64_t from, int64_t to, T* panel) const {
        if (outs < width_) std::fill(panel + from * width_, panel + to * width_, T(0));
        for (int64_t p = from; p < to;) {
            const int64_t image = (pixel + p) / shape_.pixels(), at = (pixel + p) % shape_.pixels();
            const int64_t some = std::min(to - p, shape_.pixels() - at);
            if (arguments.channels_last) {
                for (int64_t i = p; i < p + some; ++i) {
                    std::copy_n(grad + (pixel + i) * shape_.out_channels + out, outs, panel + i * width_);
                }
            } else {
                transpose(grad + (image * shape_.out_channels + out) * shape_.pixels() + at, shape_.pixels(), outs,
                          some, panel + p * width_, width_);
            }
            p += some;
        }
    }

    DeformShape shape_;
    int64_t width_, panels_, columns_, most_;
    Scratch<T> packed_;
};

// Adds (or, for the first image, writes) a part's rows (tap, channel) of outer() values to the weights' gradient.
template <class T>
void store_rows(const Arguments<T>& arguments, const Part& part, const T* rows, bool add, T* weight_grad) {
    constexpr int64_t most = 16;  // channels and output channels at a time
    const DeformShape& shape = arguments.shape;
    const int64_t taps = shape.taps(), outer = shape.outer(), inner = part.channel - part.group * shape.inner();
    const int64_t blocks = (part.channels + most - 1) / most;
    // Steps of the gradient from one tap, channel to the next.
    const int64_t tap_step = arguments.weight_channels_last ? shape.inner() : 1;
    const int64_t channel_step = arguments.weight_channels_last ? 1 : taps;
    parallel(blocks * ((outer + most - 1) / most), most * most * taps, [&](int64_t from, int64_t to) {
        const Scratch<T> lines(most * most * taps);  // in the order of the gradient, except that it may have gaps
        for (int64_t i = from; i < to; ++i) {
            const int64_t channel = i % blocks * most, channels = std::min(most, part.channels - channel);
            const int64_t out = i / blocks * most, outs = std::min(most, outer - out);
            const int64_t tap_line = arguments.weight_channels_last ? channels : 1;
            for (int64_t tap = 0; tap < taps; ++tap) {
                for (int64_t c = 0; c < channels; ++c) {
                    const T* row = rows + (tap * part.channels + channel + c) * outer + out;
                    T* line = lines.data() + tap * tap_line + c * channel_step;
                    for (int64_t o = 0; o < outs; ++o) line[o * channels * taps] = row[o];
                }
            }
            const int64_t length = arguments.weight_channels_last ? channels : channels * taps;
            for (int64_t o = 0; o < outs; ++o) {
                T* target = weight_grad + (part.group * outer + out + o) * arguments.weight_stride() +
                            (inner + channel) * channel_step;
                for (const T* line = lines.data() + o * channels * taps;
                     line < lines.data() + (o + 1) * channels * taps; line += length, target += tap_step) {
                    for (int64_t k = 0; k < length; ++k) target[k] = add ? target[k] + line[k] : line[k];
                }
            }
        }
    });
}

}  // namespace

template <class T>
void weight_gradient(const Arguments<T>& arguments, const T* grad, T* weight_grad) {
    const DeformShape& shape = arguments.shape;
    Grads<T> grads(shape);
    for_each_piece(arguments, [&](const Piece<T>& piece) {
        const std::vector<Part> parts = piece.parts(shape);
        const std::vector<Run> runs = make_runs(shape, parts);
        const std::vector<T> zeros(piece.channels, T(0));
        const int64_t size = piece.channels * shape.taps() * shape.outer();
        const Scratch<T> rows(size);
        std::fill_n(rows.data(), size, T(0));
        const int64_t last = (piece.image + piece.images) * shape.pixels();
        for (int64_t pixel = piece.image * shape.pixels(); pixel < last; pixel += grads.most()) {
            const int64_t pixels = std::min(grads.most(), last - pixel);
            grads.pack(arguments, grad, pixel, pixels);
            const int64_t cost = pixels * run_channels * (shape.outer() / 16 + 1);
            parallel(static_cast<int64_t>(runs.size()), cost, [&](int64_t from, int64_t to) {
                const Scratch<T> columns(block * run_stride);
                for (int64_t i = from; i < to; ++i) {
                    const Run& run = runs[i];
                    for (int64_t p = 0; p < pixels; p += block) {
                        const int64_t count = std::min(block, pixels - p);
                        sample(arguments, piece, static_cast<const T*>(zeros.data()), pixel + p, count, run.tap,
                               run.channel, run.channels, columns.data(), run_stride);
                        gemm::multiply(gemm::Left<T>{columns.data(), 1, run_stride}, grads.from(run.group, p),
                                       run.channels, shape.outer(), count,
                                       gemm::Result<T>{rows.data() + run.row * shape.outer(), shape.outer(), true});
                    }
                }
            });
        }
        const T* row = rows.data();
        for (const Part& part : parts) {
            store_rows(arguments, part, row, piece.image > 0, weight_grad);
            row += part.channels * shape.taps() * shape.outer();
        }
    });
}

template void weight_gradient(const Arguments<float>&, const float*, float*);
template void weight_gradient(const Arguments<double>&, const double*, double*);

}  // namespace visionlab::deform

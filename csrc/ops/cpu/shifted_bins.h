// Bins that move, on the CPU, where many channels share a bin. A bin stays a weighted sum over rows times one over
// columns wherever it moves to, and samples that share a cell share one read. Sums run over channels that lie side by
// side; a contiguous map is copied into that layout first.
#pragma once

#include <algorithm>
#include <vector>

#include "../../channels.h"
#include "../../common.h"
#include "../../memory.h"
#include "../../simd.h"
#include "../shifted_bins.h"

namespace visionlab {

// The boxes of each image, in their order: those of image n are order[first[n]] up to order[first[n + 1]].
struct BoxesByImage {
    std::vector<int64_t> order, first;

    template <class T>
    BoxesByImage(const char* name, const T* boxes, int64_t count, int64_t batch) : order(count), first(batch + 1, 0) {
        for (int64_t i = 0; i < count; ++i) {
            const T* box = boxes + 5 * i;
            for (int64_t part = 0; part < 5; ++part) {
                if (!std::isfinite(box[part]))
                    fail(name, ": boxes: expected finite numbers, got ", box[part], " in box ", i);
            }
            if (!can_pool(box, batch)) {
                fail(name, ": boxes: expected image indices in [0, ", batch, "), got ", box[0], " in box ", i);
            }
            ++first[static_cast<int64_t>(box[0]) + 1];
        }
        for (int64_t n = 0; n < batch; ++n) first[n + 1] += first[n];
        std::vector<int64_t> next(first);
        for (int64_t i = 0; i < count; ++i) order[next[static_cast<int64_t>(boxes[5 * i])]++] = i;
    }
};

// `Count` values that are computed on together, in as many vectors as that takes. Sums do not depend on how many.
template <class T, int Bytes, int Count>
struct Lanes {
    using Part = simd::Vector<T, std::min<int>(Bytes, Count * sizeof(T))>;
    static constexpr int parts = Count / Part::lanes;
    typename Part::type values[parts];

    static VISIONLAB_INLINE Lanes load(const T* from) {
        Lanes result;
        for (int i = 0; i < parts; ++i) result.values[i] = Part::load(from + i * Part::lanes);
        return result;
    }
    VISIONLAB_INLINE void store(T* to) const {
        for (int i = 0; i < parts; ++i) Part::store(to + i * Part::lanes, values[i]);
    }
    template <class Other>
    VISIONLAB_INLINE void add_product(const Lanes& factor, const Other& other) {
        for (int i = 0; i < parts; ++i) values[i] += factor.values[i] * at(other, i);
    }
    VISIONLAB_INLINE T sum() const {
        T all[Count];
        store(all);
        for (int half = Count / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) all[i] += all[i + half];
        }
        return all[0];
    }

  private:
    static VISIONLAB_INLINE T at(T value, int) { return value; }
    static VISIONLAB_INLINE typename Part::type at(const Lanes& other, int i) { return other.values[i]; }
};

template <class T>
struct SlopedTap {
    int64_t cell;
    T weight, slope;
};

struct Rows {
    int64_t first, last;
};

// The cells that the bins of one box read along one axis; the taps of bin i end at ends[i].
template <class T>
struct SlopedTaps {
    std::vector<SlopedTap<T>> taps;
    std::vector<int64_t> ends;

    void clear() {
        taps.clear();
        ends.clear();
    }

    void append_none() { ends.push_back(static_cast<int64_t>(taps.size())); }

    void append(const BinSide<T>& side, bool mean_of_inside, bool slopes) {
        const size_t first = taps.size();
        int64_t inside = 0;
        for (int64_t i = 0; i < side.samples; ++i) {
            const SlopedSample<T> sample = side.sample(i);
            if (!sample.inside) continue;
            ++inside;
            const T slope = slopes ? sample.slope : T(0);
            add(first, {sample.low, sample.low_weight, -slope});
            add(first, {sample.high, sample.high_weight, slope});
        }
        const T count = T(mean_of_inside ? inside : side.samples);
        for (size_t i = first; i < taps.size(); ++i) {
            taps[i].weight /= count;
            taps[i].slope /= count;
        }
        append_none();
    }

    // Drops the taps of the last bin that lie outside; says whether any are left.
    bool keep(const Rows& rows) {
        const size_t first = ends.size() > 1 ? ends[ends.size() - 2] : 0;
        const auto outside = [&](const SlopedTap<T>& tap) { return tap.cell < rows.first || tap.cell >= rows.last; };
        taps.erase(std::remove_if(taps.begin() + first, taps.end(), outside), taps.end());
        ends.back() = static_cast<int64_t>(taps.size());
        return first < taps.size();
    }

  private:
    // Samples advance by small steps, so a cell met before in this bin is one of the last two.
    void add(size_t first, const SlopedTap<T>& tap) {
        if (tap.weight == T(0) && tap.slope == T(0)) return;
        const size_t end = taps.size();
        for (size_t i = end; i > first && i + 2 > end; --i) {
            if (taps[i - 1].cell == tap.cell) {
                taps[i - 1].weight += tap.weight;
                taps[i - 1].slope += tap.slope;
                return;
            }
        }
        taps.push_back(tap);
    }
};

// All bins of one box, for the channels of one class and the rows asked for.
template <class T>
struct BoxTaps {
    SlopedTaps<T> rows, columns;
    int64_t image = 0;
    T per_x = 0, per_y = 0;

    template <class Geometry>
    void build(const Geometry& geometry, int64_t box, int64_t channel, bool slopes, const Rows* within = nullptr) {
        rows.clear();
        columns.clear();
        for (int64_t i = 0; i < geometry.bins.height; ++i) {
            for (int64_t j = 0; j < geometry.bins.width; ++j) {
                const Bin<T> bin = geometry.bin(box, channel, i, j);
                rows.append(bin.rows, bin.mean_of_inside, slopes);
                if (within != nullptr && !rows.keep(*within)) {
                    columns.append_none();
                } else {
                    columns.append(bin.columns, bin.mean_of_inside, slopes);
                }
                image = bin.image;
                per_x = bin.per_x;
                per_y = bin.per_y;
            }
        }
    }
};

// The taps of one bin.
template <class T>
struct BinTaps {
    const SlopedTap<T>*row, *row_end, *column, *column_end;

    BinTaps(const BoxTaps<T>& box, int64_t bin)
        : row(box.rows.taps.data() + (bin > 0 ? box.rows.ends[bin - 1] : 0)),
          row_end(box.rows.taps.data() + box.rows.ends[bin]),
          column(box.columns.taps.data() + (bin > 0 ? box.columns.ends[bin - 1] : 0)),
          column_end(box.columns.taps.data() + box.columns.ends[bin]) {}
};

// ---- kernels: one box, `channels` channels side by side ------------------------------------------------------------

template <int Bytes, class T>
VISIONLAB_INLINE void pool_moved_body(const T* map, int64_t row_stride, int64_t pixel_stride, const BoxTaps<T>& box,
                                      const T* mask, int64_t bins, int64_t channels, T* out, int64_t bin_stride) {
    for (int64_t bin = 0; bin < bins; ++bin) {
        const BinTaps<T> taps(box, bin);
        const T factor = mask == nullptr ? T(1) : mask[bin];
        for_each_channel<T, Bytes>(
            channels, [&](auto vector, auto count, int64_t channel) __attribute__((always_inline)) {
                using V = decltype(vector);
                constexpr int vectors = decltype(count)::value;
                typename V::type sums[vectors] = {};
                for (const SlopedTap<T>* row = taps.row; row < taps.row_end; ++row) {
                    const T* line = map + row->cell * row_stride + channel;
                    for (const SlopedTap<T>* column = taps.column; column < taps.column_end; ++column) {
                        const T* pixel = line + column->cell * pixel_stride;
                        const T weight = row->weight * column->weight;
#pragma GCC unroll 4
                        for (int i = 0; i < vectors; ++i) sums[i] += weight * V::load(pixel + i * V::lanes);
                    }
                }
#pragma GCC unroll 4
                for (int i = 0; i < vectors; ++i) {
                    V::store(out + bin * bin_stride + channel + i * V::lanes, factor * sums[i]);
                }
            });
    }
}

VISIONLAB_SIMD_LEVELS(pool_moved, pool_moved_body)

// The transpose: adds the gradient of each bin, weighted, to its cells.
template <int Bytes, class T>
VISIONLAB_INLINE void spread_moved_body(T* map, int64_t row_stride, int64_t pixel_stride, const BoxTaps<T>& box,
                                        const T* mask, int64_t bins, int64_t channels, const T* grad,
                                        int64_t bin_stride) {
    for (int64_t bin = 0; bin < bins; ++bin) {
        const BinTaps<T> taps(box, bin);
        if (taps.row == taps.row_end) continue;
        const T factor = mask == nullptr ? T(1) : mask[bin];
        for_each_channel<T, Bytes>(
            channels, [&](auto vector, auto count, int64_t channel) __attribute__((always_inline)) {
                using V = decltype(vector);
                constexpr int vectors = decltype(count)::value;
                typename V::type grads[vectors];
#pragma GCC unroll 4
                for (int i = 0; i < vectors; ++i) {
                    grads[i] = factor * V::load(grad + bin * bin_stride + channel + i * V::lanes);
                }
                for (const SlopedTap<T>* row = taps.row; row < taps.row_end; ++row) {
                    T* line = map + row->cell * row_stride + channel;
                    for (const SlopedTap<T>* column = taps.column; column < taps.column_end; ++column) {
                        T* pixel = line + column->cell * pixel_stride;
                        const T weight = row->weight * column->weight;
#pragma GCC unroll 4
                        for (int i = 0; i < vectors; ++i) {
                            V::store(pixel + i * V::lanes, V::load(pixel + i * V::lanes) + weight * grads[i]);
                        }
                    }
                }
            });
    }
}

VISIONLAB_SIMD_LEVELS(spread_moved, spread_moved_body)

// The gradient times the pooled value, and times how that changes along x and y, summed over channels, for each bin.
template <int Bytes, class T>
VISIONLAB_INLINE void move_bins_body(const T* map, int64_t row_stride, int64_t pixel_stride, const BoxTaps<T>& box,
                                     int64_t bins, int64_t channels, const T* grad, int64_t bin_stride,
                                     BinValue<T>* out) {
    using Sum = Lanes<T, Bytes, 16>;
    for (int64_t bin = 0; bin < bins; ++bin) {
        const BinTaps<T> taps(box, bin);
        const T* grads = grad + bin * bin_stride;
        Sum value{}, along_x{}, along_y{};
        for (const SlopedTap<T>* row = taps.row; row < taps.row_end; ++row) {
            for (const SlopedTap<T>* column = taps.column; column < taps.column_end; ++column) {
                const T* pixel = map + row->cell * row_stride + column->cell * pixel_stride;
                Sum cell{};
                int64_t channel = 0;
                for (; channel + 16 <= channels; channel += 16) {
                    cell.add_product(Sum::load(pixel + channel), Sum::load(grads + channel));
                }
                if (channel < channels) {
                    T values[16] = {}, others[16] = {};
                    for (int i = 0; channel < channels; ++i, ++channel) {
                        values[i] = pixel[channel];
                        others[i] = grads[channel];
                    }
                    cell.add_product(Sum::load(values), Sum::load(others));
                }
                if (row->weight != T(0) && column->weight != T(0))
                    value.add_product(cell, row->weight * column->weight);
                if (row->weight != T(0) && column->slope != T(0))
                    along_x.add_product(cell, row->weight * column->slope);
                if (row->slope != T(0) && column->weight != T(0))
                    along_y.add_product(cell, row->slope * column->weight);
            }
        }
        out[bin] = {value.sum(), along_x.sum(), along_y.sum()};
    }
}

VISIONLAB_SIMD_LEVELS(move_bins, move_bins_body)

// ---- tasks ---------------------------------------------------------------------------------------------------------

// Copies a contiguous map to a channels-last one.
template <class T>
void to_channels_last(const T* from, const Bins& bins, T* to) {
    constexpr int64_t together = 32;
    const int64_t area = bins.map_height * bins.map_width, channels = bins.input_channels;
    for (int64_t n = 0; n < bins.batch; ++n) {
        parallel_for(0, area, 64, [&](int64_t first, int64_t last) {
            for (int64_t channel = 0; channel < channels; channel += together) {
                transpose(from + (n * channels + channel) * area + first, area, std::min(together, channels - channel),
                          last - first, to + (n * area + first) * channels + channel, channels);
            }
        });
    }
}

// How many output channels move together.
inline int64_t channels_together(const Bins& bins) {
    return bins.classes > 0 ? bins.channels / bins.classes : bins.channels;
}

// `map` is channels-last whatever the output is.
template <class T, class Geometry>
void pool_channels(const Geometry& geometry, const T* map, const T* mask, T* output) {
    const Bins& shape = geometry.bins;
    const int64_t bins = shape.height * shape.width, channels = shape.channels, together = channels_together(shape);
    const int64_t row_stride = shape.map_width * channels;
    parallel_for(0, shape.boxes, 4, [&](int64_t from, int64_t to) {
        const Scratch<T> pooled(shape.channels_last ? 0 : bins * channels);
        BoxTaps<T> taps;
        for (int64_t box = from; box < to; ++box) {
            T* out = shape.channels_last ? output + box * bins * channels : pooled.data();
            for (int64_t channel = 0; channel < channels; channel += together) {
                taps.build(geometry, box, channel, false);
                pool_moved(map + taps.image * shape.map_height * row_stride + channel, row_stride, channels, taps,
                           mask == nullptr ? mask : mask + box * bins, bins, together, out + channel, channels);
            }
            if (!shape.channels_last) transpose(out, channels, bins, channels, output + box * bins * channels, bins);
        }
    });
}

// Adds to the gradient of the input, or to rows of it, for channels from `first` on: `pixel` is a pixel of the map, and
// the gradient of a box has `bin_stride` values to a bin, of which these channels are the first.
template <class T, class Geometry>
void spread_box(const Geometry& geometry, int64_t box, int64_t first, int64_t channels, const Rows* rows, const T* grad,
                int64_t bin_stride, const T* mask, T* map, int64_t pixel, BoxTaps<T>& taps) {
    const Bins& shape = geometry.bins;
    const int64_t bins = shape.height * shape.width, together = channels_together(shape);
    for (int64_t channel = first; channel < first + channels;) {
        const int64_t end = std::min(first + channels, (channel / together + 1) * together);
        taps.build(geometry, box, channel, false, rows);
        spread_moved(map + channel - first, shape.map_width * pixel, pixel, taps,
                     mask == nullptr ? mask : mask + box * bins, bins, end - channel, grad + channel - first,
                     bin_stride);
        channel = end;
    }
}

// Writes the gradient of a channels-last input. Threads share the rows of the map, and many threads the channels too.
template <class T, class Geometry>
void spread_channels_last(const Geometry& geometry, const BoxesByImage& boxes, const T* grad, const T* mask, T* map) {
    const Bins& shape = geometry.bins;
    const int64_t bins = shape.height * shape.width, pixel = shape.channels, row = shape.map_width * pixel;
    const int64_t block = channels_beside_rows(pixel), blocks = pixel == 0 ? 0 : (pixel + block - 1) / block;
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t shares = std::min({threads, threads_along_rows, shape.map_height});
    parallel_for(0, shape.batch * blocks * shares, 1, [&](int64_t from, int64_t to) {
        BoxTaps<T> taps;
        for (int64_t task = from; task < to; ++task) {
            const int64_t share = task % shares, channel = task / shares % blocks * block, n = task / shares / blocks;
            const int64_t channels = std::min(block, pixel - channel);
            const Rows rows{shape.map_height * share / shares, shape.map_height * (share + 1) / shares};
            T* target = map + n * shape.map_height * row + channel;
            for (int64_t i = rows.first * shape.map_width; i < rows.last * shape.map_width; ++i) {
                std::fill_n(target + i * pixel, channels, T(0));
            }
            for (int64_t i = boxes.first[n]; i < boxes.first[n + 1]; ++i) {
                const int64_t box = boxes.order[i];
                spread_box(geometry, box, channel, channels, &rows, grad + box * bins * pixel + channel, pixel, mask,
                           target, pixel, taps);
            }
        }
    });
}

// Writes the gradient of a contiguous input, a block of channels at a time.
template <class T, class Geometry>
void spread_contiguous(const Geometry& geometry, const BoxesByImage& boxes, const T* grad, const T* mask, T* map) {
    const Bins& shape = geometry.bins;
    const int64_t bins = shape.height * shape.width, channels = shape.channels;
    const int64_t area = shape.map_height * shape.map_width;
    for_each_block(shape.batch, channels, channels, [&](int64_t n, int64_t first, int64_t count) {
        const Scratch<T> turned(bins * count), sums(area * count);
        std::fill_n(sums.data(), area * count, T(0));
        BoxTaps<T> taps;
        for (int64_t i = boxes.first[n]; i < boxes.first[n + 1]; ++i) {
            const int64_t box = boxes.order[i];
            transpose(grad + (box * channels + first) * bins, bins, count, bins, turned.data(), count);
            spread_box(geometry, box, first, count, nullptr, turned.data(), count, mask, sums.data(), count, taps);
        }
        transpose(sums.data(), count, area, count, map + (n * channels + first) * area, area);
    });
}

template <class T, class Geometry>
void spread_channels(const Geometry& geometry, const BoxesByImage& boxes, const T* grad, const T* mask, T* map) {
    if (geometry.bins.channels_last) return spread_channels_last(geometry, boxes, grad, mask, map);
    spread_contiguous(geometry, boxes, grad, mask, map);
}

// Adds to the gradients of offsets and mask, each of which may be null.
template <class T, class Geometry>
void move_channels(const Geometry& geometry, const T* grad, const T* map, const T* mask, T* grad_offset, T* grad_mask) {
    const Bins& shape = geometry.bins;
    const int64_t bins = shape.height * shape.width, channels = shape.channels, together = channels_together(shape);
    const int64_t row_stride = shape.map_width * channels;
    parallel_for(0, shape.boxes, 4, [&](int64_t from, int64_t to) {
        const Scratch<T> turned(shape.channels_last ? 0 : bins * channels);
        std::vector<BinValue<T>> values(bins);
        BoxTaps<T> taps;
        for (int64_t box = from; box < to; ++box) {
            const T* source = grad + box * bins * channels;
            if (!shape.channels_last) {
                transpose(source, bins, channels, bins, turned.data(), channels);
                source = turned.data();
            }
            for (int64_t channel = 0; channel < channels; channel += together) {
                taps.build(geometry, box, channel, true);
                move_bins(map + taps.image * shape.map_height * row_stride + channel, row_stride, channels, taps, bins,
                          together, source + channel, channels, values.data());
                for (int64_t bin = 0; bin < bins; ++bin) {
                    if (grad_mask != nullptr) grad_mask[box * bins + bin] += values[bin].value;
                    if (grad_offset == nullptr) continue;
                    const T factor = mask == nullptr ? T(1) : mask[box * bins + bin];
                    T* target = grad_offset + shape.offset_index(box, channel, bin / shape.width, bin % shape.width);
                    target[0] += factor * taps.per_x * values[bin].along_x;
                    target[shape.part_area()] += factor * taps.per_y * values[bin].along_y;
                }
            }
        }
    });
}

}  // namespace visionlab

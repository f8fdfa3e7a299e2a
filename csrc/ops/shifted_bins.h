// Pooling in bins that each move by an offset of their own (Dai et al. 2017, Deformable Convolutional Networks,
// arXiv:1703.06211, section 2.2): where a bin samples, and the kernels of all devices, one value or one bin a call.
//
// A `Geometry` says how one operator lays out its bins; see deform_roi_pool.h and deform_ps_roi_pool.h. It has
//     using Coordinate                                        float, or double beside double input
//     Bins bins                                               the shapes
//     const Coordinate* boxes                                 (K, 5)
//     int64_t input_channel(channel, i, j)                    that an output channel reads in bin (i, j)
//     Bin<Coordinate> bin(box, channel, i, j)
// where `channel` is one of the output.
#pragma once

#include "../device.h"

namespace visionlab {

// A sample at `position` lies between cells `low` and `high`, and outside the map beyond `margin` cells from its edge.
// Between the edge and there it has the value of the edge, whose slope is 0.
template <class G>
struct SlopedSample {
    int64_t low = 0, high = 0;
    G low_weight = 0, high_weight = 0;
    G slope = 0;  // of high_weight, and of -low_weight: 1 or 0
    bool inside = false;

    // False for a position that is not a number.
    static VISIONLAB_HOST_DEVICE bool is_inside(G position, G margin, int64_t size) {
        return position >= -margin && position <= G(size - 1) + margin;
    }

    VISIONLAB_HOST_DEVICE SlopedSample(G position, G margin, int64_t size) {
        if (!is_inside(position, margin, size)) return;
        inside = true;
        low_weight = G(1);
        if (position < G(0)) return;
        low = static_cast<int64_t>(position);
        if (low >= size - 1) {
            low = high = size - 1;
            return;
        }
        high = low + 1;
        high_weight = position - G(low);
        low_weight = G(1) - high_weight;
        slope = G(1);
    }
};

// One side of a bin: sample s lies at origin + (s + phase) * length / parts + shift.
template <class G>
struct BinSide {
    G origin, phase, length, parts, shift, margin;
    int64_t samples;
    int64_t size;  // of the map

    VISIONLAB_HOST_DEVICE G position(int64_t sample) const {
        return origin + (G(sample) + phase) * length / parts + shift;
    }
    VISIONLAB_HOST_DEVICE SlopedSample<G> sample(int64_t index) const { return {position(index), margin, size}; }

    VISIONLAB_HOST_DEVICE int64_t count_inside() const {
        int64_t count = 0;
        for (int64_t i = 0; i < samples; ++i) count += SlopedSample<G>::is_inside(position(i), margin, size);
        return count;
    }
};

template <class G>
struct Bin {
    int64_t image;  // -1 for a box that cannot be pooled
    BinSide<G> rows, columns;
    bool mean_of_inside;  // whether samples outside the map are left out of the mean, or count as 0
    G per_x, per_y;       // how far the bin moves per unit of its offsets

    VISIONLAB_HOST_DEVICE G scale() const {
        const G count =
            mean_of_inside ? G(rows.count_inside()) * G(columns.count_inside()) : G(rows.samples) * G(columns.samples);
        return count > G(0) ? G(1) / count : G(0);
    }
};

// Shapes. Pixels of the map and bins of the output are in rows unless channels_last. Offsets are (boxes, 2 * classes,
// part_height, part_width); classes is 0 without offsets, and the parts are then the bins.
struct Bins {
    int64_t batch, input_channels, map_height, map_width;
    int64_t boxes, channels, height, width;
    int64_t classes, part_height, part_width;
    bool channels_last;

    VISIONLAB_HOST_DEVICE int64_t part_row(int64_t i) const { return i * part_height / height; }
    VISIONLAB_HOST_DEVICE int64_t part_column(int64_t j) const { return j * part_width / width; }
    // The first bin of a part; the bins of part p end where those of p + 1 begin.
    VISIONLAB_HOST_DEVICE int64_t first_row(int64_t part) const {
        return (part * height + part_height - 1) / part_height;
    }
    VISIONLAB_HOST_DEVICE int64_t first_column(int64_t part) const {
        return (part * width + part_width - 1) / part_width;
    }

    VISIONLAB_HOST_DEVICE int64_t class_of(int64_t channel) const { return channel / (channels / classes); }

    // Of the horizontal offset; the vertical one lies a part plane further on.
    VISIONLAB_HOST_DEVICE int64_t offset_index(int64_t box, int64_t channel, int64_t i, int64_t j) const {
        return (((box * classes + class_of(channel)) * 2) * part_height + part_row(i)) * part_width + part_column(j);
    }
    VISIONLAB_HOST_DEVICE int64_t part_area() const { return part_height * part_width; }

    VISIONLAB_HOST_DEVICE int64_t input_index(int64_t image, int64_t channel) const {
        return image * input_channels * map_height * map_width +
               (channels_last ? channel : channel * map_height * map_width);
    }
    VISIONLAB_HOST_DEVICE int64_t pixel_stride() const { return channels_last ? input_channels : 1; }
    VISIONLAB_HOST_DEVICE int64_t row_stride() const { return map_width * pixel_stride(); }

    VISIONLAB_HOST_DEVICE int64_t output_index(int64_t box, int64_t channel, int64_t i, int64_t j) const {
        return channels_last ? ((box * height + i) * width + j) * channels + channel
                             : ((box * channels + channel) * height + i) * width + j;
    }
    VISIONLAB_HOST_DEVICE int64_t bin_index(int64_t box, int64_t i, int64_t j) const {
        return (box * height + i) * width + j;
    }
    VISIONLAB_HOST_DEVICE int64_t outputs() const { return boxes * channels * height * width; }
};

// Whether a box has a number everywhere and names an image of the batch.
template <class G>
VISIONLAB_HOST_DEVICE bool can_pool(const G* box, int64_t batch) {
    for (int i = 0; i < 5; ++i) {
        if (!(box[i] - box[i] == G(0))) return false;
    }
    return box[0] >= G(0) && box[0] < G(batch);
}

template <class G>
VISIONLAB_HOST_DEVICE G blend(const SlopedSample<G>& sample, G low, G high) {
    return sample.high_weight == G(0) ? low : sample.low_weight * low + sample.high_weight * high;
}

// What one bin is on one channel, and how it changes when the bin moves along x and y.
template <class G>
struct BinValue {
    G value = 0, along_x = 0, along_y = 0;
};

template <class T, class G>
VISIONLAB_HOST_DEVICE BinValue<G> pool_bin(const Bin<G>& bin, const T* map, int64_t row_stride, int64_t pixel_stride) {
    BinValue<G> sum;
    for (int64_t y = 0; y < bin.rows.samples; ++y) {
        const SlopedSample<G> row = bin.rows.sample(y);
        if (!row.inside) continue;
        for (int64_t x = 0; x < bin.columns.samples; ++x) {
            const SlopedSample<G> column = bin.columns.sample(x);
            if (!column.inside) continue;
            const T *above = map + row.low * row_stride, *below = map + row.high * row_stride;
            const int64_t left = column.low * pixel_stride, right = column.high * pixel_stride;
            // A cell of weight 0 is not read: it may hold what is not a number.
            const bool two_rows = row.high != row.low, two_columns = column.high != column.low;
            const G top_left = load(above + left);
            const G top_right = two_columns ? load(above + right) : top_left;
            const G bottom_left = two_rows ? load(below + left) : top_left;
            const G bottom_right = two_rows ? (two_columns ? load(below + right) : bottom_left) : top_right;
            const G at_left = blend(row, top_left, bottom_left), at_right = blend(row, top_right, bottom_right);
            sum.value += blend(column, at_left, at_right);
            if (column.slope != G(0)) sum.along_x += at_right - at_left;
            if (row.slope != G(0)) {
                sum.along_y += blend(column, bottom_left, bottom_right) - blend(column, top_left, top_right);
            }
        }
    }
    const G scale = bin.scale();
    return {sum.value * scale, sum.along_x * scale, sum.along_y * scale};
}

// Calls add(offset in the plane, weight) for each cell that a bin reads.
template <class G, class Add>
VISIONLAB_HOST_DEVICE void spread_bin(const Bin<G>& bin, int64_t row_stride, int64_t pixel_stride, const Add& add) {
    const G scale = bin.scale();
    for (int64_t y = 0; y < bin.rows.samples; ++y) {
        const SlopedSample<G> row = bin.rows.sample(y);
        if (!row.inside) continue;
        for (int64_t x = 0; x < bin.columns.samples; ++x) {
            const SlopedSample<G> column = bin.columns.sample(x);
            if (!column.inside) continue;
            const int64_t above = row.low * row_stride, below = row.high * row_stride;
            const int64_t left = column.low * pixel_stride, right = column.high * pixel_stride;
            const G top = row.low_weight * scale, bottom = row.high_weight * scale;
            add(above + left, top * column.low_weight);
            if (column.high_weight != G(0)) add(above + right, top * column.high_weight);
            if (row.high_weight == G(0)) continue;
            add(below + left, bottom * column.low_weight);
            if (column.high_weight != G(0)) add(below + right, bottom * column.high_weight);
        }
    }
}

// ---- kernels -------------------------------------------------------------------------------------------------------

// One output value a call, in the order in which they lie in memory.
template <class T, class Geometry>
struct PoolBins {
    using G = Accumulate<T>;
    Geometry geometry;
    const T* input;
    const G* mask;  // or null
    T* output;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const Bins& bins = geometry.bins;
        const OutputValue at(bins, index);
        const Bin<G> bin = geometry.bin(at.box, at.channel, at.i, at.j);
        if (bin.image < 0) {
            store(output + index, G(NAN));
            return;
        }
        const T* map = input + bins.input_index(bin.image, geometry.input_channel(at.channel, at.i, at.j));
        const G value = pool_bin(bin, map, bins.row_stride(), bins.pixel_stride()).value;
        store(output + index, mask == nullptr ? value : value * mask[bins.bin_index(at.box, at.i, at.j)]);
    }

    struct OutputValue {
        int64_t box, channel, i, j;
        VISIONLAB_HOST_DEVICE OutputValue(const Bins& bins, int64_t index) {
            if (bins.channels_last) {
                channel = index % bins.channels;
                index /= bins.channels;
            }
            j = index % bins.width;
            index /= bins.width;
            i = index % bins.height;
            index /= bins.height;
            if (!bins.channels_last) {
                channel = index % bins.channels;
                index /= bins.channels;
            }
            box = index;
        }
    };
};

// The gradient of the input. One output value a call, which adds to what others add to as well.
template <class T, class Geometry>
struct SpreadBins {
    using G = Accumulate<T>;
    Geometry geometry;
    const T* grad;
    const G* mask;
    G* grad_input;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const Bins& bins = geometry.bins;
        const typename PoolBins<T, Geometry>::OutputValue at(bins, index);
        const Bin<G> bin = geometry.bin(at.box, at.channel, at.i, at.j);
        if (bin.image < 0) return;
        G value = load(grad + index);
        if (mask != nullptr) value *= mask[bins.bin_index(at.box, at.i, at.j)];
        G* map = grad_input + bins.input_index(bin.image, geometry.input_channel(at.channel, at.i, at.j));
        spread_bin(bin, bins.row_stride(), bins.pixel_stride(),
                   [=](int64_t cell, G weight) { add(map + cell, weight * value); });
    }
};

// The same in one fixed order: one plane (image, channel) of the input a call, which no other call writes.
template <class T, class Geometry>
struct SpreadBinsInOrder {
    using G = Accumulate<T>;
    Geometry geometry;
    const T* grad;
    const G* mask;
    G* grad_input;

    VISIONLAB_HOST_DEVICE void operator()(int64_t plane) const {
        const Bins& bins = geometry.bins;
        const int64_t image = plane / bins.input_channels, channel = plane % bins.input_channels;
        const int64_t output_channel = channel / (bins.input_channels / bins.channels);
        G* map = grad_input + bins.input_index(image, channel);
        for (int64_t box = 0; box < bins.boxes; ++box) {
            if (!(geometry.boxes[5 * box] >= G(image) && geometry.boxes[5 * box] < G(image + 1))) continue;
            for (int64_t i = 0; i < bins.height; ++i) {
                for (int64_t j = 0; j < bins.width; ++j) {
                    if (geometry.input_channel(output_channel, i, j) != channel) continue;
                    const Bin<G> bin = geometry.bin(box, output_channel, i, j);
                    if (bin.image < 0) continue;
                    G value = load(grad + bins.output_index(box, output_channel, i, j));
                    if (mask != nullptr) value *= mask[bins.bin_index(box, i, j)];
                    spread_bin(bin, bins.row_stride(), bins.pixel_stride(),
                               [=](int64_t cell, G weight) { map[cell] += weight * value; });
                }
            }
        }
    }
};

// The gradients of offsets and mask. One part of one box and `block` of its output channels a call. With all channels
// in one block no two calls add to the same value.
template <class T, class Geometry>
struct MoveBins {
    using G = Accumulate<T>;
    Geometry geometry;
    const T* grad;
    const T* input;
    const G* mask;
    G* grad_offset;  // or null
    G* grad_mask;    // or null
    int64_t block;

    VISIONLAB_HOST_DEVICE int64_t blocks() const { return (geometry.bins.channels + block - 1) / block; }
    VISIONLAB_HOST_DEVICE int64_t calls() const { return geometry.bins.boxes * blocks() * geometry.bins.part_area(); }

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const Bins& bins = geometry.bins;
        const int64_t part_column = index % bins.part_width;
        const int64_t part_row = index / bins.part_width % bins.part_height;
        const int64_t first = index / bins.part_area() % blocks() * block;
        const int64_t last = first + block < bins.channels ? first + block : bins.channels;
        const int64_t box = index / bins.part_area() / blocks();
        for (int64_t i = bins.first_row(part_row); i < bins.first_row(part_row + 1); ++i) {
            for (int64_t j = bins.first_column(part_column); j < bins.first_column(part_column + 1); ++j) {
                one_bin(box, first, last, i, j);
            }
        }
    }

    VISIONLAB_HOST_DEVICE void one_bin(int64_t box, int64_t first, int64_t last, int64_t i, int64_t j) const {
        const Bins& bins = geometry.bins;
        const G factor = mask == nullptr ? G(1) : mask[bins.bin_index(box, i, j)];
        BinValue<G> sum, of_class;
        for (int64_t channel = first; channel < last; ++channel) {
            const Bin<G> bin = geometry.bin(box, channel, i, j);
            if (bin.image < 0) return;
            const T* map = input + bins.input_index(bin.image, geometry.input_channel(channel, i, j));
            const BinValue<G> value = pool_bin(bin, map, bins.row_stride(), bins.pixel_stride());
            const G gradient = load(grad + bins.output_index(box, channel, i, j));
            sum.value += gradient * value.value;
            of_class.along_x += gradient * value.along_x * (factor * bin.per_x);
            of_class.along_y += gradient * value.along_y * (factor * bin.per_y);
            if (grad_offset == nullptr) continue;
            if (channel + 1 < last && bins.class_of(channel + 1) == bins.class_of(channel)) continue;
            G* target = grad_offset + bins.offset_index(box, channel, i, j);
            add(target, of_class.along_x);
            add(target + bins.part_area(), of_class.along_y);
            of_class = {};
        }
        if (grad_mask != nullptr) add(grad_mask + bins.bin_index(box, i, j), sum.value);
    }
};

}  // namespace visionlab

// The bins of deform_ps_roi_pool: corners rounded to pixels of the image, samples at the corners of sub-bins, and in
// each bin a channel group of its own.
#pragma once

#include "shifted_bins.h"

namespace visionlab {

// One side of a RoI on the map. Both edges are pixels of the image, and the second one belongs to the RoI.
template <class G>
struct PixelSide {
    G start, length;

    VISIONLAB_HOST_DEVICE PixelSide(G first, G last, G scale) {
        start = std::round(first) * scale - G(0.5);  // halves away from zero
        length = (std::round(last) + G(1)) * scale - G(0.5) - start;
        if (!(length >= G(0.1))) length = G(0.1);
    }
};

template <class G>
struct DeformPSRoIPoolGeometry {
    using Coordinate = G;
    Bins bins;
    const G* boxes;
    const G* offset;  // or null
    G spatial_scale;
    int64_t group_height, group_width;
    int64_t sample_per_part;
    G gamma;

    VISIONLAB_HOST_DEVICE int64_t input_channel(int64_t channel, int64_t i, int64_t j) const {
        return (channel * group_height + i * group_height / bins.height) * group_width + j * group_width / bins.width;
    }

    VISIONLAB_HOST_DEVICE Bin<G> bin(int64_t box, int64_t channel, int64_t i, int64_t j) const {
        Bin<G> result{};
        result.image = -1;
        const G* corners = boxes + 5 * box;
        if (!can_pool(corners, bins.batch)) return result;
        const PixelSide<G> y(corners[2], corners[4], spatial_scale), x(corners[1], corners[3], spatial_scale);
        result.image = static_cast<int64_t>(corners[0]);
        result.mean_of_inside = true;
        G shift_x = 0, shift_y = 0;
        if (bins.classes > 0) {
            const G* shift = offset + bins.offset_index(box, channel, i, j);
            result.per_x = gamma * x.length;
            result.per_y = gamma * y.length;
            shift_x = result.per_x * shift[0];
            shift_y = result.per_y * shift[bins.part_area()];
        }
        result.rows = side(y, i, bins.height, shift_y, bins.map_height);
        result.columns = side(x, j, bins.width, shift_x, bins.map_width);
        return result;
    }

    VISIONLAB_HOST_DEVICE BinSide<G> side(const PixelSide<G>& roi, int64_t at_bin, int64_t count, G shift,
                                          int64_t size) const {
        const G length = roi.length / G(count);
        return {roi.start + G(at_bin) * length,
                G(0),
                length / G(sample_per_part),
                G(1),
                shift,
                G(0.5),
                sample_per_part,
                size};
    }
};

}  // namespace visionlab

// The bins of deform_roi_pool: those of RoIAlign (aligned), each moved by its offset.
#pragma once

#include "roi_align.h"
#include "shifted_bins.h"

namespace visionlab {

constexpr double most_deform_samples = 1 << 16;  // along one side of a bin

template <class G>
struct DeformRoIPoolGeometry {
    using Coordinate = G;
    Bins bins;
    const G* boxes;
    const G* offset;
    G spatial_scale;
    int64_t sampling_ratio;
    G gamma;

    VISIONLAB_HOST_DEVICE int64_t input_channel(int64_t channel, int64_t, int64_t) const { return channel; }

    VISIONLAB_HOST_DEVICE Bin<G> bin(int64_t box, int64_t channel, int64_t i, int64_t j) const {
        Bin<G> result{};
        result.image = -1;
        const G* corners = boxes + 5 * box;
        if (!can_pool(corners, bins.batch)) return result;
        const RoIAxis<G> y(corners[2], corners[4], spatial_scale, bins.height, sampling_ratio, true);
        const RoIAxis<G> x(corners[1], corners[3], spatial_scale, bins.width, sampling_ratio, true);
        if (!(y.samples <= G(most_deform_samples) && x.samples <= G(most_deform_samples))) return result;
        const G* shift = offset + bins.offset_index(box, channel, i, j);
        result.image = static_cast<int64_t>(corners[0]);
        result.per_x = gamma * (x.bin * G(bins.width));
        result.per_y = gamma * (y.bin * G(bins.height));
        result.rows = side(y, i, result.per_y * shift[bins.part_area()], bins.map_height);
        result.columns = side(x, j, result.per_x * shift[0], bins.map_width);
        return result;
    }

    static VISIONLAB_HOST_DEVICE BinSide<G> side(const RoIAxis<G>& axis, int64_t at_bin, G shift, int64_t size) {
        return {axis.start + G(at_bin) * axis.bin,  G(0.5), axis.bin, axis.samples, shift, G(1),
                static_cast<int64_t>(axis.samples), size};
    }
};

}  // namespace visionlab

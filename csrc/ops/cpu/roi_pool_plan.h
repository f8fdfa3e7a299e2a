// What RoIPool does before it pools: which cells the bins of each box cover, in which order boxes are taken, and from
// which table of maxima each is pooled.
#pragma once

#include <limits>
#include <tuple>

#include "../roi_pool.h"
#include "rois.h"

namespace visionlab {

struct RoI {
    int64_t index = 0, image = 0;
    int64_t level = 0;                       // it is pooled from maxima of 2^level rows
    int64_t middle_y = 0, middle_x = 0;      // twice the coordinates of its middle
    int64_t from_column = 0, to_column = 0;  // what its bins read of each row
    int64_t width = 0;                       // the same, counting twice what two bins read
    const Cells *rows = nullptr, *columns = nullptr;
};

// What a band of `rows` rows costs to read when maxima of 2^level rows are at hand. Fewer rows than that are read
// alone.
inline int64_t reads(int64_t rows, int64_t level) {
    const int64_t window = int64_t(1) << level;
    return rows >= window ? (rows + window - 1) >> level : rows;
}

inline int64_t reads(const RoI& roi, int64_t bins, int64_t level) {
    int64_t sum = 0;
    for (int64_t i = 0; i < bins; ++i) sum += reads(roi.rows[i].count(), level);
    return sum * roi.width;
}

// All boxes: sorted by image, level and place, so that what one has read is in cache for the next. Those of image n are
// first[n] up to first[n + 1], and all they read of it lies in box[n].
struct RoIs {
    struct Part {
        Cells rows, columns;
        int64_t area() const { return rows.count() * columns.count(); }
    };
    std::vector<RoI> all;
    std::vector<int64_t> first;
    std::vector<Part> part;
    std::vector<Cells> rows, columns;

    template <class T>
    RoIs(const T* boxes, const MapLayout& map, const MapLayout& pooled, T scale, bool tables)
        : all(pooled.batch),
          first(map.batch + 1, 0),
          part(map.batch, {{map.height, 0}, {map.width, 0}}),
          rows(pooled.batch * pooled.height),
          columns(pooled.batch * pooled.width) {
        for (int64_t k = 0; k < pooled.batch; ++k) add(boxes + 5 * k, k, map, pooled, scale);
        for (int64_t n = 0; n < map.batch; ++n) first[n + 1] += first[n];
        std::sort(all.begin(), all.end(), [](const RoI& a, const RoI& b) { return a.image < b.image; });
        for (int64_t n = 0; tables && n < map.batch; ++n) choose_levels(n, pooled.height);
        std::sort(all.begin(), all.end(), [](const RoI& a, const RoI& b) {
            constexpr int64_t band = 32;
            return std::make_tuple(a.image, a.level, a.middle_y / band, a.middle_x, a.index) <
                   std::make_tuple(b.image, b.level, b.middle_y / band, b.middle_x, b.index);
        });
    }

  private:
    template <class T>
    void add(const T* box, int64_t k, const MapLayout& map, const MapLayout& pooled, T scale) {
        RoI& roi = all[k];
        roi.index = k;
        roi.image = image_of(box, map.batch);
        roi.rows = rows.data() + k * pooled.height;
        roi.columns = columns.data() + k * pooled.width;
        ++first[roi.image + 1];
        const RoundedAxis<T> y(box[2], box[4], scale, pooled.height, true);
        const RoundedAxis<T> x(box[1], box[3], scale, pooled.width, true);
        Cells height{map.height, 0}, width{map.width, 0};
        for (int64_t i = 0; i < pooled.height; ++i)
            extend(height, rows[k * pooled.height + i] = y.cells(i, map.height));
        for (int64_t i = 0; i < pooled.width; ++i) {
            const Cells cells = columns[k * pooled.width + i] = x.cells(i, map.width);
            extend(width, cells);
            roi.width += cells.count();
        }
        if (height.count() == 0 || width.count() == 0) return;
        roi.middle_y = height.begin + height.end;
        roi.middle_x = width.begin + width.end;
        roi.from_column = width.begin;
        roi.to_column = width.end;
        extend(part[roi.image].rows, height);
        extend(part[roi.image].columns, width);
    }

    static void extend(Cells& range, const Cells& by) {
        if (by.count() == 0) return;
        range.begin = std::min(range.begin, by.begin);
        range.end = std::max(range.end, by.end);
    }

    // Takes tables up to the level at which one more costs more to make than it saves.
    void choose_levels(int64_t n, int64_t bins) {
        const auto least = [&](const RoI& roi, int64_t most) {
            int64_t best = 0;
            for (int64_t level = 1; level <= most; ++level) {
                if (reads(roi, bins, level) < reads(roi, bins, best)) best = level;
            }
            return best;
        };
        int64_t levels = 0, lowest = std::numeric_limits<int64_t>::max();
        for (int64_t most = 0; most == 0 || int64_t(1) << most <= part[n].rows.count(); ++most) {
            int64_t cost = 2 * most * part[n].area();
            for (int64_t i = first[n]; i < first[n + 1]; ++i) cost += reads(all[i], bins, least(all[i], most));
            if (cost < lowest) {
                lowest = cost;
                levels = most;
            }
        }
        for (int64_t i = first[n]; i < first[n + 1]; ++i) all[i].level = least(all[i], levels);
    }
};

// Calls function(state, image, first channel, channels) in parallel for blocks of at most `most` channels.
// make_state(image) gives what the tasks of one thread on one image keep.
template <class MakeState, class Function>
void for_each_part(const MapLayout& map, int64_t most, const MakeState& make_state, const Function& function) {
    const int64_t blocks = (map.channels + most - 1) / most;
    parallel_for(0, map.batch * blocks, 1, [&](int64_t from, int64_t to) {
        for (int64_t task = from; task < to;) {
            const int64_t n = task / blocks;
            auto state = make_state(n);
            for (; task < to && task / blocks == n; ++task) {
                const int64_t channel = task % blocks * most;
                function(state, n, channel, std::min(most, map.channels - channel));
            }
        }
    });
}

inline void check_area(const MapLayout& map) {
    if (map.area() > std::numeric_limits<int32_t>::max()) {
        fail("roi_pool: input: expected less than 2^31 pixels, got ", map.height, " x ", map.width);
    }
}

}  // namespace visionlab

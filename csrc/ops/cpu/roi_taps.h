// The RoIs of a call as its CPU kernels read them: the cells and weights of each bin, and the bins in an order in which
// neighbors on the map follow each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../roi_align_tensors.h"
#include "../rois.h"

namespace visionlab {

template <class T>
struct Tap {
    int64_t cell;
    T weight;
};

// The cells that each bin reads along one axis; the taps of bin i end at ends[i].
template <class T>
class AxisTaps {
  public:
    AxisTaps() = default;
    AxisTaps(const RoIAxis<T>& axis, int64_t bins, int64_t size) {
        const int64_t samples = static_cast<int64_t>(axis.samples);
        taps_.reserve(bins * std::min(2 * samples, size));
        ends_.reserve(bins + 1);
        ends_.push_back(0);
        for (int64_t bin = 0; bin < bins; ++bin) {
            const size_t first = taps_.size();
            for (int64_t i = 0; i < samples; ++i) {
                const LinearSample<T> sample(axis.position(bin, i), size);
                add(first, sample.low, sample.low_weight / axis.samples);
                add(first, sample.high, sample.high_weight / axis.samples);
            }
            ends_.push_back(static_cast<int64_t>(taps_.size()));
        }
    }

    const Tap<T>* begin(int64_t bin) const { return taps_.data() + ends_[bin]; }
    const Tap<T>* end(int64_t bin) const { return taps_.data() + ends_[bin + 1]; }

  private:
    // Samples advance by small steps, so a cell met before in this bin is one of the last two.
    void add(size_t first, int64_t cell, T weight) {
        if (weight == T(0)) return;
        const size_t end = taps_.size();
        for (size_t i = end; i > first && i + 2 > end; --i) {
            if (taps_[i - 1].cell == cell) {
                taps_[i - 1].weight += weight;
                return;
            }
        }
        taps_.push_back({cell, weight});
    }

    std::vector<Tap<T>> taps_;
    std::vector<int64_t> ends_;
};

template <class T>
struct RoI {
    int64_t map = 0;  // image * levels + level
    AxisTaps<T> rows, columns;
};

template <class T>
RoI<T> make_roi(const char* name, const T* box, int64_t level, int64_t index, const RoIPooling& pooling) {
    for (int64_t i = 0; i < 5; ++i) {
        if (!std::isfinite(box[i])) fail(name, ": boxes: expected finite numbers, got ", box[i], " in box ", index);
    }
    if (!(box[0] >= T(0) && box[0] < T(pooling.batch))) {
        fail(name, ": boxes: expected image indices in [0, ", pooling.batch, "), got ", box[0], " in box ", index);
    }
    const int64_t levels = static_cast<int64_t>(pooling.levels.size());
    if (level < 0 || level >= levels) {
        fail(name, ": levels: expected levels in [0, ", levels, "), got ", level, " in box ", index);
    }
    const RoILevel& map = pooling.levels[level];
    const T scale = static_cast<T>(map.scale);
    const RoIAxis<T> y(box[2], box[4], scale, pooling.height, pooling.sampling_ratio, pooling.aligned);
    const RoIAxis<T> x(box[1], box[3], scale, pooling.width, pooling.sampling_ratio, pooling.aligned);
    if (!(y.samples <= most_roi_samples && x.samples <= most_roi_samples)) {
        fail(name, ": boxes: expected at most ", most_roi_samples, " samples along one side of a bin, got more in box ",
             index, "; clip boxes to the image or set sampling_ratio");
    }
    return {static_cast<int64_t>(box[0]) * levels + level, AxisTaps<T>(y, pooling.height, map.height),
            AxisTaps<T>(x, pooling.width, map.width)};
}

// A bin reads the cells of rows `row` to `row_end`, in the columns `column` to `column_end`.
template <class T>
struct Bin {
    int64_t number;
    const Tap<T>*row, *row_end, *column, *column_end;
};

// Bin b of RoI k is number k * bins + b. The bins of one map (an image of a level) stand together, those of map m from
// first[m] up to first[m + 1], and within it tile by tile, so that cells read for one bin are in cache for the next.
// `whole` RoIs keep their bins together, and only stand in the order of their middles.
template <class T>
struct RoIs {
    std::vector<RoI<T>> all;
    std::vector<Bin<T>> bins;
    std::vector<int64_t> first;
    std::vector<std::pair<int64_t, int64_t>> rows;  // of each map: the first that a bin reads, and the end

    // The row of map m at which the share of the maps that belongs to bins from number `index` on begins: that of a
    // tile, or beyond all rows.
    int64_t first_row(int64_t m, int64_t index, int64_t height) const {
        if (index <= first[m]) return 0;
        return index >= first[m + 1] ? height : tile_row(bins[index]) * side_;
    }

    // A range of bins of map m, all that read cells of `rows` among them.
    std::pair<const Bin<T>*, const Bin<T>*> that_touch(int64_t m, const Cells& rows) const {
        const auto begin = bins.begin() + first[m], end = bins.begin() + first[m + 1];
        if (rows.count() <= 0) return {nullptr, nullptr};
        const auto from = std::partition_point(
            begin, end, [&](const Bin<T>& bin) { return (tile_row(bin) + 1) * side_ + reach_[m].below <= rows.begin; });
        const auto to = std::partition_point(
            from, end, [&](const Bin<T>& bin) { return tile_row(bin) * side_ - reach_[m].above < rows.end; });
        return {bins.data() + (from - bins.begin()), bins.data() + (to - bins.begin())};
    }

    RoIs(const char* name, const RoIBoxes& rois, const RoIPooling& pooling, bool whole)
        : all(rois.count()), bins(rois.count() * pooling.bins()) {
        const T* values = data<T>(rois.boxes);
        const int64_t* levels = rois.level_data();
        parallel_for(0, rois.count(), 64, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) {
                all[i] = make_roi(name, values + 5 * i, levels == nullptr ? 0 : levels[i], i, pooling);
            }
        });
        sort(pooling, whole);
        rows_read(pooling);
    }

  private:
    // How far the cells of a map's bins lie from the first cell of each, in rows.
    struct Reach {
        int64_t above = 0, below = 0;
    };
    std::vector<Reach> reach_;
    int64_t side_;

    int64_t tile_row(const Bin<T>& bin) const { return bin.row == bin.row_end ? 0 : bin.row->cell / side_; }

    // A counting sort of the bins by the tile that their first cell lies in.
    void sort(const RoIPooling& pooling, bool whole) {
        constexpr int64_t tile_bytes = 1 << 16;
        int64_t side = whole ? 16 : 64;
        while (!whole && side > 4 && side * side * pooling.channels * static_cast<int64_t>(sizeof(T)) > tile_bytes)
            side /= 2;
        side_ = side;
        const auto tiles = [&](int64_t size) { return size / side + 1; };
        const int64_t levels = static_cast<int64_t>(pooling.levels.size());
        std::vector<int64_t> tile_of_map(pooling.batch * levels + 1, 0);
        for (int64_t m = 0; m < pooling.batch * levels; ++m) {
            const RoILevel& level = pooling.levels[m % levels];
            tile_of_map[m + 1] = tile_of_map[m] + tiles(level.height) * tiles(level.width);
        }
        const auto tile = [&](const AxisTaps<T>& taps, int64_t bin) {
            return taps.begin(bin) == taps.end(bin) ? 0 : taps.begin(bin)->cell / side;
        };
        // Calls function(roi, i, j, tile) for each bin.
        const auto for_each_bin = [&](const auto& function) {
            std::vector<int64_t> columns(pooling.width);
            for (const RoI<T>& roi : all) {
                for (int64_t j = 0; j < pooling.width; ++j) {
                    columns[j] = tile(roi.columns, whole ? pooling.width / 2 : j);
                }
                const int64_t width = tiles(pooling.levels[roi.map % levels].width);
                for (int64_t i = 0; i < pooling.height; ++i) {
                    const int64_t row = tile(roi.rows, whole ? pooling.height / 2 : i);
                    for (int64_t j = 0; j < pooling.width; ++j) {
                        function(roi, i, j, tile_of_map[roi.map] + row * width + columns[j]);
                    }
                }
            }
        };
        std::vector<int64_t> ends(tile_of_map.back() + 1, 0);
        for_each_bin([&](const RoI<T>&, int64_t, int64_t, int64_t tile) { ++ends[tile + 1]; });
        for (size_t i = 1; i < ends.size(); ++i) ends[i] += ends[i - 1];
        for (const int64_t tile : tile_of_map) first.push_back(ends[tile]);
        int64_t number = 0;
        for_each_bin([&](const RoI<T>& roi, int64_t i, int64_t j, int64_t tile) {
            bins[ends[tile]++] = {number++, roi.rows.begin(i), roi.rows.end(i), roi.columns.begin(j),
                                  roi.columns.end(j)};
        });
    }

    void rows_read(const RoIPooling& pooling) {
        rows.resize(pooling.batch * pooling.levels.size());
        reach_.resize(rows.size());
        for (const RoI<T>& roi : all) {
            auto& [low, high] = rows[roi.map];
            Reach& reach = reach_[roi.map];
            for (int64_t i = 0; i < pooling.height; ++i) {
                const Tap<T>* first = roi.rows.begin(i);
                for (const Tap<T>* row = first; row < roi.rows.end(i); ++row) {
                    low = high == 0 ? row->cell : std::min(low, row->cell);
                    high = std::max(high, row->cell + 1);
                    reach.above = std::max(reach.above, first->cell - row->cell);
                    reach.below = std::max(reach.below, row->cell - first->cell);
                }
            }
        }
    }
};

}  // namespace visionlab

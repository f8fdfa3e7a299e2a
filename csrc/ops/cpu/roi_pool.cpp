// RoIPool. A maximum may count a cell twice, so a bin of n rows needs no more than a few reads per column from a table
// that holds the maximum of every 2^k rows; tables of k = 1, 2, ... are made one from the other, and boxes wait for the
// one that suits the height of their bins. Maps pass through in lines of channels, one cache line per pixel.
#include "../roi_pool.h"

#include <limits>
#include <tuple>

#include "../../scalar.h"
#include "rois.h"

namespace visionlab {

namespace {

template <class T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // as wide as a value, to sit beside it in vectors

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
int64_t reads(int64_t rows, int64_t level) {
    const int64_t window = int64_t(1) << level;
    return rows >= window ? (rows + window - 1) >> level : rows;
}

int64_t reads(const RoI& roi, int64_t bins, int64_t level) {
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
    RoIs(const T* boxes, const MapLayout& map, const MapLayout& pooled, T scale)
        : all(pooled.batch),
          first(map.batch + 1, 0),
          part(map.batch, {{map.height, 0}, {map.width, 0}}),
          rows(pooled.batch * pooled.height),
          columns(pooled.batch * pooled.width) {
        for (int64_t k = 0; k < pooled.batch; ++k) add(boxes + 5 * k, k, map, pooled, scale);
        for (int64_t n = 0; n < map.batch; ++n) first[n + 1] += first[n];
        std::sort(all.begin(), all.end(), [](const RoI& a, const RoI& b) { return a.image < b.image; });
        for (int64_t n = 0; n < map.batch; ++n) choose_levels(n, pooled.height);
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

// ---- kernels: one line of channels per pixel -----------------------------------------------------------------------

template <class T, int Bytes>
struct Line {
    using Values = simd::Vector<T, Bytes>;
    using Indices = simd::Vector<Index<T>, Bytes>;
    static constexpr int count = 64 / Bytes;
    static constexpr int lanes = Values::lanes;
};

// In each lane yes where compare(a, b), no elsewhere. Pairs of 64 bits go one by one: baseline x86-64 cannot compare
// them together, and g++ 12 fails on a conditional over them.
template <class A, class Values, class Compare>
VISIONLAB_INLINE Values choose(const A& a, const A& b, const Values& yes, const Values& no, const Compare& compare) {
    if constexpr (sizeof(A) == 16 && sizeof(a[0]) == 8) {
        return Values{compare(a[0], b[0]) ? yes[0] : no[0], compare(a[1], b[1]) ? yes[1] : no[1]};
    } else {
        return compare(a, b) ? yes : no;
    }
}

template <class A, class Values>
VISIONLAB_INLINE Values where_greater(const A& a, const A& b, const Values& yes, const Values& no) {
    return choose(a, b, yes, no, [](const auto& x, const auto& y) __attribute__((always_inline)) { return x > y; });
}

template <class A, class Values>
VISIONLAB_INLINE Values where_equal(const A& a, const A& b, const Values& yes, const Values& no) {
    return choose(a, b, yes, no, [](const auto& x, const auto& y) __attribute__((always_inline)) { return x == y; });
}

// Of equal values, the first.
template <class Values>
VISIONLAB_INLINE Values greater(const Values& a, const Values& b) {
    return where_greater(b, a, b, a);
}

// Makes every value comparable: NaN, and all that no maximum can be, become the lowest value.
template <int Bytes, class T>
VISIONLAB_INLINE void make_comparable_body(T* lines, int64_t count) {
    using V = simd::Vector<T, Bytes>;
    const typename V::type lowest = roi_pool_lowest<T> - typename V::type{};
    for (int64_t i = 0; i < count * line_channels<T>; i += V::lanes) {
        const typename V::type value = V::load(lines + i);
        V::store(lines + i, greater(lowest, value));
    }
}

VISIONLAB_SIMD_LEVELS(make_comparable, make_comparable_body)

// to[i] = max(from[i], from[i + step]) for `count` lines; to may be from. Of equal values, the former counts.
template <int Bytes, class T>
VISIONLAB_INLINE void double_windows_body(const T* from, int64_t count, int64_t step, T* to) {
    using V = simd::Vector<T, Bytes>;
    const T* next = from + step * line_channels<T>;
    for (int64_t i = 0; i < count * line_channels<T>; i += V::lanes) {
        const auto a = V::load(from + i), b = V::load(next + i);
        V::store(to + i, greater(a, b));
    }
}

VISIONLAB_SIMD_LEVELS(double_windows, double_windows_body)

// The same with the cell of each maximum. `from_cells` is null where the maxima are the cells first_cell, ...
// themselves.
template <int Bytes, class T>
VISIONLAB_INLINE void double_windows_with_cells_body(const T* from, const Index<T>* from_cells, Index<T> first_cell,
                                                     Index<T> cells_per_step, int64_t count, int64_t step, T* to,
                                                     Index<T>* to_cells) {
    using L = Line<T, Bytes>;
    using V = typename L::Values;
    using I = typename L::Indices;
    for (int64_t i = 0; i < count; ++i) {
        for (int v = 0; v < L::count; ++v) {
            const int64_t at = i * line_channels<T> + v * V::lanes, next = at + step * line_channels<T>;
            const auto a = V::load(from + at), b = V::load(from + next);
            typename I::type cell, next_cell;
            if (from_cells == nullptr) {
                cell = (first_cell + static_cast<Index<T>>(i)) - typename I::type{};
                next_cell = cell + cells_per_step;
            } else {
                cell = I::load(from_cells + at);
                next_cell = I::load(from_cells + next);
            }
            V::store(to + at, greater(a, b));
            I::store(to_cells + at, where_greater(b, a, next_cell, cell));
        }
    }
}

VISIONLAB_SIMD_LEVELS(double_windows_with_cells, double_windows_with_cells_body)

// A map of which the kernel reads: maxima of 2^level rows beginning at each, and the cell of each maximum. At level 0
// `cells` is null. Row and column `y0`, `x0` of the map come first.
template <class T>
struct Table {
    const T* values;
    const Index<T>* cells;
    int64_t level;
};

template <class T>
struct Block {
    Table<T> map, table;
    int64_t y0, x0, width;  // of the part of the map that the tables hold
    int64_t map_width;
    T* maxima;  // of one band of rows, a line per column of the part
    Index<T>* maxima_cells;
};

// One row of a table, as maxima over the columns of the part of the map.
template <class T>
struct TableRow {
    const T* values;
    const Index<T>* cells;  // null where each maximum is the cell itself, first_cell + column
    Index<T> first_cell;

    TableRow(const Block<T>& block, const Table<T>& table, int64_t row) {
        const int64_t line = (row - block.y0) * block.width * line_channels<T>;
        values = table.values + line;
        cells = table.level > 0 ? table.cells + line : nullptr;
        first_cell = static_cast<Index<T>>(row * block.map_width + block.x0);
    }

    template <class I>
    VISIONLAB_INLINE typename I::type cell(int64_t column, int64_t at) const {
        if (cells != nullptr) return I::load(cells + at);
        return first_cell + static_cast<Index<T>>(column) - typename I::type{};
    }
};

// maxima[column] = max(a[column], b[column]), where the rows of `a` come first; `a` may be null: then it is the maxima.
template <int Bytes, bool WithCells, class T>
VISIONLAB_INLINE void merge_rows(const Block<T>& block, const TableRow<T>* first, const TableRow<T>& b,
                                 const Cells& columns) {
    using L = Line<T, Bytes>;
    using V = typename L::Values;
    using I = typename L::Indices;
    T* const maxima = block.maxima;
    Index<T>* const maxima_cells = block.maxima_cells;
    const T *const values = first != nullptr ? first->values : maxima, *const next_values = b.values;
    for (int64_t x = columns.begin; x < columns.end; ++x) {
#pragma GCC unroll 4
        for (int v = 0; v < L::count; ++v) {
            const int64_t at = x * line_channels<T> + v * V::lanes;
            const auto value = V::load(values + at), next = V::load(next_values + at);
            V::store(maxima + at, greater(value, next));
            if constexpr (WithCells) {
                typename I::type cell;
                if (first != nullptr) {
                    cell = first->template cell<I>(x, at);
                } else {
                    cell = I::load(maxima_cells + at);
                }
                const typename I::type next_cell = b.template cell<I>(x, at);
                I::store(maxima_cells + at, where_greater(next, value, next_cell, cell));
            }
        }
    }
}

// Maximum of each column over a band of rows.
template <int Bytes, bool WithCells, class T>
VISIONLAB_INLINE void reduce_rows(const Block<T>& block, const Cells& rows, const Cells& columns) {
    const Table<T>& table = rows.count() >= int64_t(1) << block.table.level ? block.table : block.map;
    const int64_t window = int64_t(1) << table.level;
    const int64_t last = rows.end - window;
    const TableRow<T> first(block, table, rows.begin);
    int64_t row = std::min(rows.begin + window, last);
    merge_rows<Bytes, WithCells>(block, &first, TableRow<T>(block, table, row), columns);
    while (row < last) {
        row = std::min(row + window, last);
        merge_rows<Bytes, WithCells>(block, static_cast<const TableRow<T>*>(nullptr), TableRow<T>(block, table, row),
                                     columns);
    }
}

// Maximum over the columns of one bin, of which there is at least one.
template <int Bytes, bool WithCells, class T>
VISIONLAB_INLINE void reduce_columns(const Block<T>& block, const Cells& columns, T* output, Index<T>* output_cells) {
    using L = Line<T, Bytes>;
    using V = typename L::Values;
    using I = typename L::Indices;
    const T* const maxima = block.maxima;
    const Index<T>* const maxima_cells = block.maxima_cells;
    const int64_t begin = columns.begin * line_channels<T>, end = columns.end * line_channels<T>;
    const typename V::type lowest = roi_pool_lowest<T> - typename V::type{};
    typename V::type best[L::count];
#pragma GCC unroll 4
    for (int v = 0; v < L::count; ++v) best[v] = lowest;
    for (int64_t at = begin; at < end; at += line_channels<T>) {
#pragma GCC unroll 4
        for (int v = 0; v < L::count; ++v) {
            const auto value = V::load(maxima + at + v * V::lanes);
            best[v] = greater(best[v], value);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < L::count; ++v) V::store(output + v * V::lanes, best[v]);
    if constexpr (WithCells) {
        // Of several equal maxima, the first in the order of rows is the one whose cell is the least.
        const typename I::type none = Index<T>(-1) - typename I::type{};
        const typename I::type most = std::numeric_limits<Index<T>>::max() - typename I::type{};
        typename I::type cell[L::count];
#pragma GCC unroll 4
        for (int v = 0; v < L::count; ++v) cell[v] = most;
        for (int64_t at = begin; at < end; at += line_channels<T>) {
#pragma GCC unroll 4
            for (int v = 0; v < L::count; ++v) {
                const typename V::type value = V::load(maxima + at + v * V::lanes);
                const auto candidate = where_equal(value, best[v], I::load(maxima_cells + at + v * V::lanes), most);
                cell[v] = where_greater(cell[v], candidate, candidate, cell[v]);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < L::count; ++v)
            I::store(output_cells + v * V::lanes, where_greater(best[v], lowest, cell[v], none));
    }
}

template <int Bytes, bool WithCells, class T>
VISIONLAB_INLINE void pool_roi(const Block<T>& block, const RoI& roi, const MapLayout& pooled, T* output,
                               Index<T>* output_cells) {
    const Cells all{roi.from_column - block.x0, roi.to_column - block.x0};
    for (int64_t i = 0; i < pooled.height; ++i) {
        const bool any = roi.rows[i].count() > 0 && all.count() > 0;
        if (any) reduce_rows<Bytes, WithCells>(block, roi.rows[i], all);
        for (int64_t j = 0; j < pooled.width; ++j) {
            if (any && roi.columns[j].count() > 0) {
                const Cells columns{roi.columns[j].begin - block.x0, roi.columns[j].end - block.x0};
                reduce_columns<Bytes, WithCells>(block, columns, output, output_cells);
            } else {
                std::fill_n(output, line_channels<T>, T(0));
                if constexpr (WithCells) std::fill_n(output_cells, line_channels<T>, Index<T>(-1));
            }
            output += line_channels<T>;
            if constexpr (WithCells) output_cells += line_channels<T>;
        }
    }
}

template <int Bytes, class T>
VISIONLAB_INLINE void pool_body(const Block<T>& block, const RoI& roi, const MapLayout& pooled, T* const& output,
                                Index<T>* const& output_cells) {
    if (output_cells == nullptr) {
        pool_roi<Bytes, false>(block, roi, pooled, output, output_cells);
    } else {
        pool_roi<Bytes, true>(block, roi, pooled, output, output_cells);
    }
}

VISIONLAB_SIMD_LEVELS(pool, pool_body)

// ---- tasks ---------------------------------------------------------------------------------------------------------

// Calls function(state, image, first channel, channels) in parallel for the channels of each line. make_state(image)
// gives what the tasks of one thread on one image keep.
template <class T, class MakeState, class Function>
void for_each_line(const MapLayout& map, const MakeState& make_state, const Function& function) {
    constexpr int64_t most = line_channels<T>;
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

// The tables of one line of channels, and what is pooled from them.
template <class T>
class LinePool {
  public:
    LinePool(const RoIs::Part& part, const MapLayout& map, const MapLayout& pooled, bool tables, bool with_cells)
        : part_(part),
          map_(map),
          pooled_(pooled),
          with_cells_(with_cells),
          values_(part.area()),
          table_(tables ? part.area() : 0),
          cells_(tables && with_cells ? part.area() : 0),
          maxima_(part.columns.count()),
          maxima_cells_(with_cells ? part.columns.count() : 0),
          output_(pooled.area()),
          output_cells_(with_cells ? pooled.area() : 0),
          argmax_(with_cells ? pooled.area() * line_channels<T> : 0) {}

    void read(const T* input, int64_t channels) {
        level_ = 0;
        const int64_t width = part_.columns.count(), stride = map_.channels_last ? map_.channels : map_.area();
        for (int64_t y = part_.rows.begin; y < part_.rows.end; ++y) {
            T* lines = values_.data() + (y - part_.rows.begin) * width * line_channels<T>;
            const int64_t cell = y * map_.width + part_.columns.begin;
            pack(input + cell * map_.pixel_stride(), map_.channels_last, stride, channels, width, lines);
            make_comparable(lines, width);
        }
    }

    // Goes on to maxima of twice as many rows.
    void double_window() {
        const int64_t width = part_.columns.count(), step = int64_t(1) << level_;
        const T* from = level_ == 0 ? values_.data() : table_.data();
        const int64_t rows = part_.rows.count() - 2 * step + 1;
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t line = row * width * line_channels<T>;
            if (with_cells_) {
                const Index<T>* cells = level_ == 0 ? nullptr : cells_.data() + line;
                const int64_t first = (part_.rows.begin + row) * map_.width + part_.columns.begin;
                double_windows_with_cells(from + line, cells, static_cast<Index<T>>(first),
                                          static_cast<Index<T>>(step * map_.width), width, step * width,
                                          table_.data() + line, cells_.data() + line);
            } else {
                double_windows(from + line, width, step * width, table_.data() + line);
            }
        }
        ++level_;
    }

    int64_t level() const { return level_; }

    void write(const RoI& roi, int64_t channel, int64_t channels, T* output, int32_t* argmax) {
        const Table<T> map{values_.data(), nullptr, 0}, table{table_.data(), cells_.data(), level_};
        const Block<T> block{map,
                             level_ == 0 ? map : table,
                             part_.rows.begin,
                             part_.columns.begin,
                             part_.columns.count(),
                             map_.width,
                             maxima_.data(),
                             maxima_cells_.data()};
        T* const line = output_.data();
        Index<T>* const cells = with_cells_ ? output_cells_.data() : nullptr;
        pool(block, roi, pooled_, line, cells);
        const int64_t at = pooled_.plane(roi.index, channel);
        const int64_t stride = pooled_.channels_last ? pooled_.channels : pooled_.area();
        unpack(line, line_channels<T>, pooled_.channels_last, stride, channels, pooled_.area(), output + at);
        if (!with_cells_) return;
        std::copy_n(cells, pooled_.area() * line_channels<T>, argmax_.data());
        unpack(argmax_.data(), line_channels<T>, pooled_.channels_last, stride, channels, pooled_.area(), argmax + at);
    }

  private:
    const RoIs::Part& part_;
    const MapLayout &map_, &pooled_;
    const bool with_cells_;
    int64_t level_ = 0;
    const Lines<T> values_, table_;
    const Lines<Index<T>> cells_;
    const Lines<T> maxima_;
    const Lines<Index<T>> maxima_cells_;
    const Lines<T> output_;
    const Lines<Index<T>> output_cells_;
    const Scratch<int32_t> argmax_;
};

template <class T>
void pool_all(const T* input, const T* boxes, const MapLayout& map, const MapLayout& pooled, T scale, T* output,
              int32_t* argmax) {
    const RoIs rois(boxes, map, pooled, scale);
    const auto make_line = [&](int64_t n) {
        const int64_t end = rois.first[n + 1];
        const bool tables = rois.first[n] < end && rois.all[end - 1].level > 0;
        return LinePool<T>(rois.part[n], map, pooled, tables, argmax != nullptr);
    };
    for_each_line<T>(map, make_line, [&](LinePool<T>& line, int64_t n, int64_t channel, int64_t channels) {
        if (rois.first[n] == rois.first[n + 1]) return;
        line.read(input + map.plane(n, channel), channels);
        for (int64_t i = rois.first[n]; i < rois.first[n + 1]; ++i) {
            while (line.level() < rois.all[i].level) line.double_window();
            line.write(rois.all[i], channel, channels, output, argmax);
        }
    });
}

// The order in which boxes give their gradients: image by image, then neighbors together.
struct RoIOrder {
    std::vector<int64_t> all, first;

    template <class T>
    RoIOrder(const T* boxes, int64_t count, int64_t batch, T scale) : all(count), first(batch + 1, 0) {
        constexpr T band = 32;
        std::vector<std::tuple<int64_t, T, T, int64_t>> keys(count);
        for (int64_t k = 0; k < count; ++k) {
            const T* box = boxes + 5 * k;
            const int64_t image = image_of(box, batch);
            const T row = std::floor((box[2] / 2 + box[4] / 2) * scale / band);
            keys[k] = {image, std::isfinite(row) ? row : T(0), box[1] / 2 + box[3] / 2, k};
            ++first[image + 1];
        }
        std::sort(keys.begin(), keys.end());
        for (int64_t k = 0; k < count; ++k) all[k] = std::get<3>(keys[k]);
        for (int64_t n = 0; n < batch; ++n) first[n + 1] += first[n];
    }
};

// Asks for `bytes` bytes that will be read soon: boxes lie far apart, where the CPU does not guess by itself.
inline void prefetch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// The gradient of contiguous maps: each plane for itself.
template <class T>
void spread_contiguous(const T* grad, const int32_t* argmax, const RoIOrder& order, const MapLayout& map,
                       const MapLayout& pooled, T* output) {
    const int64_t bins = pooled.area(), area = map.area();
    const auto nothing = [](int64_t) { return 0; };
    for_each_line<T>(map, nothing, [&](int, int64_t n, int64_t channel, int64_t channels) {
        T* planes = output + map.plane(n, channel);
        std::fill_n(planes, channels * area, T(0));
        for (int64_t i = order.first[n]; i < order.first[n + 1]; ++i) {
            const int64_t at = pooled.plane(order.all[i], channel);
            const int64_t next = i + 1 < order.first[n + 1] ? pooled.plane(order.all[i + 1], channel) : at;
            for (int64_t c = 0; c < channels; ++c) {
                prefetch(grad + next + c * bins, bins * sizeof(T));
                prefetch(argmax + next + c * bins, bins * sizeof(int32_t));
                const T* values = grad + at + c * bins;
                const int32_t* cells = argmax + at + c * bins;
                for (int64_t bin = 0; bin < bins; ++bin) {
                    const int64_t cell = cells[bin];
                    if (cell >= 0 && cell < area) planes[c * area + cell] += values[bin];
                }
            }
        }
    });
}

// The gradient of channels-last maps: through lines of channels.
template <class T>
void spread_channels_last(const T* grad, const int32_t* argmax, const RoIOrder& order, const MapLayout& map,
                          const MapLayout& pooled, T* output) {
    const int64_t bins = pooled.area(), area = map.area();
    const auto make_lines = [&](int64_t) { return Lines<T>(area); };
    for_each_line<T>(map, make_lines, [&](const Lines<T>& lines, int64_t n, int64_t channel, int64_t channels) {
        T* const sums = lines.data();
        std::fill_n(sums, area * line_channels<T>, T(0));
        for (int64_t i = order.first[n]; i < order.first[n + 1]; ++i) {
            const int64_t at = pooled.plane(order.all[i], channel);
            const int64_t next = i + 1 < order.first[n + 1] ? pooled.plane(order.all[i + 1], channel) : at;
            for (int64_t bin = 0; bin < bins; ++bin) {
                __builtin_prefetch(grad + next + bin * map.channels);
                __builtin_prefetch(argmax + next + bin * map.channels);
                const T* values = grad + at + bin * map.channels;
                const int32_t* cells = argmax + at + bin * map.channels;
                for (int64_t c = 0; c < channels; ++c) {
                    const int64_t cell = cells[c];
                    if (cell >= 0 && cell < area) sums[cell * line_channels<T> + c] += values[c];
                }
            }
        }
        unpack(sums, line_channels<T>, true, map.channels, channels, area, output + map.plane(n, channel));
    });
}

MapLayout layout_of(const Tensor& tensor, bool channels_last) {
    return {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3), channels_last};
}

// Of no size where it is not asked for.
Tensor new_argmax(const Tensor& input, const MapLayout& pooled, bool wanted) {
    if (!wanted) return torch::stable::new_empty(input, {0}, ScalarType::Int);
    Tensor argmax = torch::stable::empty({pooled.batch, pooled.channels, pooled.height, pooled.width}, ScalarType::Int,
                                         std::nullopt, input.device(), std::nullopt, format(pooled.channels_last));
    use_huge_pages(argmax.mutable_data_ptr(), pooled.count() * static_cast<int64_t>(sizeof(int32_t)));
    return argmax;
}

void check_area(const MapLayout& map) {
    if (map.area() > std::numeric_limits<int32_t>::max()) {
        fail("roi_pool: a map must have less than 2^31 pixels, got ", map.height, " x ", map.width);
    }
}

}  // namespace

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& boxes, int64_t pooled_height,
                                    int64_t pooled_width, double spatial_scale, bool with_argmax) {
    const bool channels_last = is_channels_last(input);
    const MapLayout map = layout_of(input, channels_last);
    const MapLayout pooled{boxes.size(0), map.channels, pooled_height, pooled_width, channels_last};
    check_area(map);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(input, {pooled.batch, pooled.channels, pooled.height, pooled.width}, channels_last);
    Tensor argmax = new_argmax(input, pooled, with_argmax);
    dispatch_floating("roi_pool", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        check_boxes("roi_pool", data<T>(rows), pooled.batch, map.batch);
        const T scale = static_cast<T>(spatial_scale);
        int32_t* cells = with_argmax ? mutable_data<int32_t>(argmax) : nullptr;
        if (simd::level() == simd::Level::scalar) {
            for_each_index(pooled.count(), RoIPoolForward<T>{data<T>(source), data<T>(rows), mutable_data<T>(output),
                                                             cells, map, pooled, scale});
        } else {
            pool_all(data<T>(source), data<T>(rows), map, pooled, scale, mutable_data<T>(output), cells);
        }
    });
    return {output, argmax};
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& argmax, const Tensor& boxes, int64_t batch, int64_t channels,
                         int64_t height, int64_t width, double spatial_scale, bool channels_last, bool deterministic) {
    const MapLayout map{batch, channels, height, width, channels_last};
    const MapLayout pooled{grad.size(0), channels, grad.size(2), grad.size(3), channels_last};
    check_area(map);
    const Tensor values = torch::stable::contiguous(grad, format(channels_last));
    const Tensor cells = torch::stable::contiguous(argmax, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    if (cells.numel() != pooled.count())
        fail("roi_pool: the forward pass was not asked for argmax, so has no gradient");
    Tensor output = new_output(grad, {batch, channels, height, width}, channels_last);
    dispatch_floating("roi_pool_backward", grad.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        check_boxes("roi_pool", data<T>(rows), pooled.batch, batch);
        const T scale = static_cast<T>(spatial_scale);
        const int32_t* at = data<int32_t>(cells);
        if (simd::level() != simd::Level::scalar) {
            const RoIOrder order(data<T>(rows), pooled.batch, batch, scale);
            const auto spread_all = channels_last ? spread_channels_last<T> : spread_contiguous<T>;
            spread_all(data<T>(values), at, order, map, pooled, mutable_data<T>(output));
        } else if (deterministic) {
            for_each_index(map.count(), RoIPoolBackwardInOrder<T>{data<T>(values), at, data<T>(rows),
                                                                  mutable_data<T>(output), map, pooled, scale});
        } else {
            torch::stable::zero_(output);
            for_each_index_in_order(pooled.count(), RoIPoolBackward<T>{data<T>(values), at, data<T>(rows),
                                                                       mutable_data<T>(output), map, pooled});
        }
    });
    return output;
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("roi_pool", TORCH_BOX(&visionlab::roi_pool));
    m.impl("roi_pool_backward", TORCH_BOX(&visionlab::roi_pool_backward));
}

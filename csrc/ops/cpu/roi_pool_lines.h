// The kernels of RoIPool, on maps in lines of channels: one cache line per pixel.
#pragma once

#include <type_traits>

#include "roi_pool_plan.h"

namespace visionlab {

template <class T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // as wide as a value, to sit beside it in vectors

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

// to[i] = max(from[i], from[i + step]) for `count` lines; to may be from.
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

// A map of which the kernel reads: maxima of 2^level rows beginning at each.
template <class T>
struct Table {
    const T* values;
    int64_t level;
};

template <class T>
struct Block {
    Table<T> map, table;
    int64_t y0, x0, width;  // of the part of the map that the tables hold
    int64_t map_width;
    T* maxima;  // of one band of rows, a line per column of the part

    VISIONLAB_INLINE const T* row(const Table<T>& from, int64_t y) const {
        return from.values + (y - y0) * width * line_channels<T>;
    }
};

// maxima[column] = max(a[column], b[column]); `a` may be the maxima.
template <int Bytes, class T>
VISIONLAB_INLINE void merge_rows(const T* a, const T* b, const Cells& columns, T* maxima) {
    using V = simd::Vector<T, Bytes>;
    for (int64_t i = columns.begin * line_channels<T>; i < columns.end * line_channels<T>; i += V::lanes) {
        const auto value = V::load(a + i), next = V::load(b + i);
        V::store(maxima + i, greater(value, next));
    }
}

// Maximum of each column over a band of rows.
template <int Bytes, class T>
VISIONLAB_INLINE void reduce_rows(const Block<T>& block, const Cells& rows, const Cells& columns) {
    const Table<T>& table = rows.count() >= int64_t(1) << block.table.level ? block.table : block.map;
    const int64_t window = int64_t(1) << table.level;
    const int64_t last = rows.end - window;
    int64_t row = std::min(rows.begin + window, last);
    merge_rows<Bytes>(block.row(table, rows.begin), block.row(table, row), columns, block.maxima);
    while (row < last) {
        row = std::min(row + window, last);
        merge_rows<Bytes>(static_cast<const T*>(block.maxima), block.row(table, row), columns, block.maxima);
    }
}

// Maximum over the columns of one bin, of which there is at least one.
template <int Bytes, class T>
VISIONLAB_INLINE void reduce_columns(const T* maxima, const Cells& columns, T* output) {
    using L = Line<T, Bytes>;
    using V = typename L::Values;
    typename V::type best[L::count];
#pragma GCC unroll 4
    for (int v = 0; v < L::count; ++v) best[v] = roi_pool_lowest<T> - typename V::type{};
    for (int64_t at = columns.begin * line_channels<T>; at < columns.end * line_channels<T>; at += line_channels<T>) {
#pragma GCC unroll 4
        for (int v = 0; v < L::count; ++v) {
            const auto value = V::load(maxima + at + v * V::lanes);
            best[v] = greater(best[v], value);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < L::count; ++v) V::store(output + v * V::lanes, best[v]);
}

// The cell of each maximum of one bin, -1 for none. Its cells are compared with the maximum from the last to the first,
// so that of several equal ones the first stays.
template <int Bytes, class T>
VISIONLAB_INLINE void find_cells(const Block<T>& block, const Cells& rows, const Cells& columns, const T* output,
                                 Index<T>* output_cells) {
    using L = Line<T, Bytes>;
    using V = typename L::Values;
    using I = typename L::Indices;
    const typename I::type none = Index<T>(-1) - typename I::type{};
    typename V::type best[L::count];
    typename I::type cell[L::count];
#pragma GCC unroll 4
    for (int v = 0; v < L::count; ++v) {
        best[v] = V::load(output + v * V::lanes);
        cell[v] = none;
    }
    for (int64_t y = rows.end - 1; y >= rows.begin; --y) {
        const T* line = block.row(block.map, y) + (columns.end - 1) * line_channels<T>;
        typename I::type here =
            static_cast<Index<T>>(y * block.map_width + block.x0 + columns.end - 1) - typename I::type{};
        for (int64_t x = columns.end - 1; x >= columns.begin; --x, line -= line_channels<T>) {
#pragma GCC unroll 4
            for (int v = 0; v < L::count; ++v) {
                const auto value = V::load(line + v * V::lanes);
                cell[v] = where_equal(value, best[v], here, cell[v]);
            }
            here += none;
        }
    }
    const typename V::type lowest = roi_pool_lowest<T> - typename V::type{};
#pragma GCC unroll 4
    for (int v = 0; v < L::count; ++v) {
        I::store(output_cells + v * V::lanes, where_greater(best[v], lowest, cell[v], none));
    }
}

// Pools one box; `output_cells` may be null.
template <int Bytes, class T>
VISIONLAB_INLINE void pool_body(const Block<T>& block, const RoI& roi, const MapLayout& pooled, T* output,
                                Index<T>* output_cells) {
    const Cells all{roi.from_column - block.x0, roi.to_column - block.x0};
    for (int64_t i = 0; i < pooled.height; ++i) {
        const bool any = roi.rows[i].count() > 0 && all.count() > 0;
        if (any) reduce_rows<Bytes>(block, roi.rows[i], all);
        for (int64_t j = 0; j < pooled.width; ++j, output += line_channels<T>) {
            const Cells columns{roi.columns[j].begin - block.x0, roi.columns[j].end - block.x0};
            if (any && columns.count() > 0) {
                reduce_columns<Bytes>(static_cast<const T*>(block.maxima), columns, output);
                if (output_cells != nullptr) {
                    find_cells<Bytes>(block, roi.rows[i], columns, static_cast<const T*>(output), output_cells);
                }
            } else {
                std::fill_n(output, line_channels<T>, T(0));
                if (output_cells != nullptr) std::fill_n(output_cells, line_channels<T>, Index<T>(-1));
            }
            if (output_cells != nullptr) output_cells += line_channels<T>;
        }
    }
}

VISIONLAB_SIMD_LEVELS(pool, pool_body)

}  // namespace visionlab

// Products of matrices that lie in a core's caches, one thread each. The sums of an element are taken in the order of
// `depth` whatever the shape, so cutting a product into tiles, or giving them to more threads, changes no bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

// Here, and only here, multiplication and addition are fused where the CPU can: it doubles the rate.
#if defined(__clang__)
#pragma clang fp contract(fast)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#endif

namespace visionlab::gemm {

// Columns of a panel, the form in which the right-hand matrix comes: (columns / width, depth, width) values, the last
// panel filled up with zeros.
template <class T>
int64_t panel_width() {
    switch (simd::level()) {
        case simd::Level::avx512:
            return 2 * 64 / sizeof(T);
        case simd::Level::avx2:
            return 2 * 32 / sizeof(T);
        default:
            return 2 * 16 / sizeof(T);
    }
}

// A left-hand matrix of any strides.
template <class T>
struct Left {
    const T* data;
    int64_t row_stride, depth_stride;
};

// Panels a stride apart, of which `depth` rows are used.
template <class T>
struct Panels {
    const T* data;
    int64_t stride;
};

template <class T>
struct Result {
    T* data;
    int64_t row_stride;
    bool add;  // to what is there; otherwise it is overwritten
};

// The columns of one panel for `Rows` rows, which are summed in registers.
template <class V, int Rows, class T>
VISIONLAB_INLINE void multiply_rows(const Left<T>& left, int64_t row, const T* panel, int64_t depth,
                                    const Result<T>& result, int64_t column, int64_t columns) {
    typename V::type sums[Rows][2] = {};
    const T* values[Rows];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) values[r] = left.data + (row + r) * left.row_stride;
    for (int64_t at = 0; depth > 0; --depth, at += left.depth_stride, panel += 2 * V::lanes) {
        const typename V::type first = V::load(panel), second = V::load(panel + V::lanes);
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
            const T value = values[r][at];
            sums[r][0] += value * first;
            sums[r][1] += value * second;
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
        T* to = result.data + (row + r) * result.row_stride + column;
        if (columns >= 2 * V::lanes) {
            if (result.add) {
                sums[r][0] += V::load(to);
                sums[r][1] += V::load(to + V::lanes);
            }
            V::store(to, sums[r][0]);
            V::store(to + V::lanes, sums[r][1]);
        } else {
            T line[2 * V::lanes];
            V::store(line, sums[r][0]);
            V::store(line + V::lanes, sums[r][1]);
            for (int64_t i = 0; i < columns; ++i) to[i] = result.add ? to[i] + line[i] : line[i];
        }
    }
}

template <int Bytes, class T>
VISIONLAB_INLINE void multiply_body(const Left<T>& left, const Panels<T>& right, int64_t rows, int64_t columns,
                                    int64_t depth, const Result<T>& result) {
    using V = simd::Vector<T, Bytes>;
    const T* panel = right.data;
    for (int64_t column = 0; column < columns; column += 2 * V::lanes, panel += right.stride) {
        int64_t row = 0;
        for (; row + 6 <= rows; row += 6) {
            multiply_rows<V, 6>(left, row, panel, depth, result, column, columns - column);
        }
        for (; row + 2 <= rows; row += 2) {
            multiply_rows<V, 2>(left, row, panel, depth, result, column, columns - column);
        }
        if (row < rows) multiply_rows<V, 1>(left, row, panel, depth, result, column, columns - column);
    }
}

VISIONLAB_SIMD_LEVELS(multiply, multiply_body)

}  // namespace visionlab::gemm

#if !defined(__clang__) && defined(__GNUC__)
#pragma GCC pop_options
#endif

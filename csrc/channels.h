// Loops over channels that lie side by side, and the way there and back for tensors whose channels do not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common.h"
#include "simd.h"

namespace visionlab {

// Covers channels [0, channels): calls body(vector, count, channel) with `count` vectors from `channel` on, four
// vectors at a time, then one, then single values. `vector` is a simd::Vector, `count` an integral_constant.
template <class T, int Bytes, class Body>
VISIONLAB_INLINE void for_each_channel(int64_t channels, const Body& body) {
    using Wide = simd::Vector<T, Bytes>;
    using Single = simd::Vector<T, sizeof(T)>;
    int64_t channel = 0;
    for (; channel + 4 * Wide::lanes <= channels; channel += 4 * Wide::lanes) {
        body(Wide{}, std::integral_constant<int, 4>{}, channel);
    }
    for (; channel + Wide::lanes <= channels; channel += Wide::lanes) {
        body(Wide{}, std::integral_constant<int, 1>{}, channel);
    }
    for (; channel < channels; ++channel) body(Single{}, std::integral_constant<int, 1>{}, channel);
}

constexpr int64_t threads_along_rows = 8;

// How many channels make a task where the rows of a channels-last map are shared first: two threads that write to one
// pixel wait for each other's cache lines. Only more than eight threads share the channels too.
inline int64_t channels_beside_rows(int64_t channels) {
    constexpr int64_t least = 64;
    const int64_t share = (channels * threads_along_rows / torch::stable::get_num_threads() + 15) / 16 * 16;
    return std::min(std::max(share, least), channels);
}

// Calls function(image, first channel, channels) in parallel for blocks of at most `most` channels. No task writes what
// another one touches, so nothing depends on the number of threads.
template <class Function>
void for_each_block(int64_t batch, int64_t channels, int64_t most, const Function& function) {
    const int64_t share = batch * channels / torch::stable::get_num_threads();
    const int64_t block = std::clamp<int64_t>((share + 15) / 16 * 16, 16, std::max<int64_t>(most, 16));
    const int64_t blocks = (channels + block - 1) / block;
    parallel_for(0, batch * blocks, 1, [&](int64_t from, int64_t to) {
        for (int64_t task = from; task < to; ++task) {
            const int64_t channel = task % blocks * block;
            function(task / blocks, channel, std::min(block, channels - channel));
        }
    });
}

// Two vectors become their lanes in the order of the indices; those of the second follow those of the first.
#if defined(__clang__)
#define VISIONLAB_SHUFFLE(INDEX, A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define VISIONLAB_SHUFFLE(INDEX, A, B, ...) __builtin_shuffle(A, B, INDEX{__VA_ARGS__})
#endif

// Pairs of rows in steps of a transpose: values, then pairs of values, then halves of 32 bytes change places.
template <int Bytes>
struct RowPairs;

template <>
struct RowPairs<16> {
    typedef float Singles __attribute__((vector_size(16)));
    typedef double Pairs __attribute__((vector_size(16)));
    typedef int32_t SingleIndex __attribute__((vector_size(16)));
    typedef int64_t PairIndex __attribute__((vector_size(16)));

    static VISIONLAB_INLINE void zip_singles(Pairs& first, Pairs& second) {
        const Singles a = (Singles)first, b = (Singles)second;
        first = (Pairs)VISIONLAB_SHUFFLE(SingleIndex, a, b, 0, 4, 1, 5);
        second = (Pairs)VISIONLAB_SHUFFLE(SingleIndex, a, b, 2, 6, 3, 7);
    }
    static VISIONLAB_INLINE void zip_pairs(Pairs& first, Pairs& second) {
        const Pairs a = first, b = second;
        first = VISIONLAB_SHUFFLE(PairIndex, a, b, 0, 2);
        second = VISIONLAB_SHUFFLE(PairIndex, a, b, 1, 3);
    }
    static VISIONLAB_INLINE void zip_halves(Pairs&, Pairs&) {}
};

template <>
struct RowPairs<32> {
    typedef float Singles __attribute__((vector_size(32)));
    typedef double Pairs __attribute__((vector_size(32)));
    typedef int32_t SingleIndex __attribute__((vector_size(32)));
    typedef int64_t PairIndex __attribute__((vector_size(32)));

    static VISIONLAB_INLINE void zip_singles(Pairs& first, Pairs& second) {
        const Singles a = (Singles)first, b = (Singles)second;
        first = (Pairs)VISIONLAB_SHUFFLE(SingleIndex, a, b, 0, 8, 1, 9, 4, 12, 5, 13);
        second = (Pairs)VISIONLAB_SHUFFLE(SingleIndex, a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    static VISIONLAB_INLINE void zip_pairs(Pairs& first, Pairs& second) {
        const Pairs a = first, b = second;
        first = VISIONLAB_SHUFFLE(PairIndex, a, b, 0, 4, 2, 6);
        second = VISIONLAB_SHUFFLE(PairIndex, a, b, 1, 5, 3, 7);
    }
    static VISIONLAB_INLINE void zip_halves(Pairs& first, Pairs& second) {
        const Pairs a = first, b = second;
        first = VISIONLAB_SHUFFLE(PairIndex, a, b, 0, 1, 4, 5);
        second = VISIONLAB_SHUFFLE(PairIndex, a, b, 2, 3, 6, 7);
    }
};

#undef VISIONLAB_SHUFFLE

// Transposes a square of as many rows as a vector has lanes.
template <int Bytes, class T>
VISIONLAB_INLINE void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
    using R = RowPairs<Bytes>;
    constexpr int lanes = Bytes / sizeof(T);
    typename R::Pairs rows[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes; ++i) std::memcpy(&rows[i], from + i * from_stride, Bytes);
    if constexpr (sizeof(T) == 4) {
#pragma GCC unroll 8
        for (int i = 0; i < lanes; i += 2) R::zip_singles(rows[i], rows[i + 1]);
#pragma GCC unroll 8
        for (int i = 0; i < lanes; i += 4) {
            R::zip_pairs(rows[i], rows[i + 2]);
            R::zip_pairs(rows[i + 1], rows[i + 3]);
            const typename R::Pairs second = rows[i + 2];
            rows[i + 2] = rows[i + 1];
            rows[i + 1] = second;
        }
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < lanes; i += 2) R::zip_pairs(rows[i], rows[i + 1]);
    }
    if constexpr (Bytes == 32) {
#pragma GCC unroll 8
        for (int i = 0; i < lanes / 2; ++i) R::zip_halves(rows[i], rows[i + lanes / 2]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < lanes; ++i) std::memcpy(to + i * to_stride, &rows[i], Bytes);
}

template <int Bytes, class T>
VISIONLAB_INLINE void transpose_body(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                                     int64_t to_stride) {
    constexpr int bytes = Bytes > 32 ? 32 : Bytes;
    constexpr int64_t lanes = bytes / sizeof(T), block = 32;
    if (rows < lanes || columns < lanes) {
        for (int64_t column = 0; column < columns; ++column) {
            for (int64_t row = 0; row < rows; ++row) to[column * to_stride + row] = from[row * from_stride + column];
        }
        return;
    }
    for (int64_t first = 0; first < columns; first += block) {
        const int64_t last = std::min(first + block, columns);
        // The last square of a row or column begins before its place rather than end outside the matrix.
        for (int64_t r = 0; r < rows; r += lanes) {
            const int64_t row = std::min(r, rows - lanes);
            for (int64_t c = first; c < last; c += lanes) {
                const int64_t column = std::min(c, columns - lanes);
                transpose_square<bytes>(from + row * from_stride + column, from_stride, to + column * to_stride + row,
                                        to_stride);
            }
        }
    }
}

VISIONLAB_SIMD_LEVELS(transpose_at_level, transpose_body)

// Writes the (rows, columns) matrix at `from` as (columns, rows) to `to`; neighboring lines are a stride apart.
template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    transpose_at_level(from, from_stride, rows, columns, to, to_stride);
}

}  // namespace visionlab

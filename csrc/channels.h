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

// Writes the (rows, columns) matrix at `from` as (columns, rows) to `to`; neighboring lines are a stride apart.
template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
    constexpr int64_t tile = 128;  // long enough runs of a row that the next values are fetched ahead
    constexpr int64_t lanes = 4;
    for (int64_t column = 0; column < columns; column += tile) {
        const int64_t last = std::min(column + tile, columns);
        int64_t row = 0;
        for (; row + lanes <= rows; row += lanes) {
            const T* line = from + row * from_stride;
            for (int64_t i = column; i < last; ++i) {
                const T together[lanes] = {line[i], line[from_stride + i], line[2 * from_stride + i],
                                           line[3 * from_stride + i]};
                std::memcpy(to + i * to_stride + row, together, sizeof together);
            }
        }
        for (; row < rows; ++row) {
            for (int64_t i = column; i < last; ++i) to[i * to_stride + row] = from[row * from_stride + i];
        }
    }
}

}  // namespace visionlab

// Runs the functors of the CUDA kernels on the CPU, for VISIONLAB_SIMD=scalar.
#pragma once

#include "common.h"

namespace visionlab {

// For functors of which no two calls write the same value.
template <class Functor>
void for_each_index(int64_t count, const Functor& functor) {
    parallel_for(0, count, 256, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) functor(i);
    });
}

// For functors that add to shared values.
template <class Functor>
void for_each_index_in_order(int64_t count, const Functor& functor) {
    for (int64_t i = 0; i < count; ++i) functor(i);
}

}  // namespace visionlab

// What the arithmetic shared by CPU and CUDA is written in. No torch header: nvcc compiles it too.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define VISIONLAB_HOST_DEVICE __host__ __device__
#else
#define VISIONLAB_HOST_DEVICE
#endif

namespace visionlab {

// What values of T are summed in, and what boxes and offsets beside them come in.
template <class T>
struct AccumulateType {
    using type = float;
};
template <>
struct AccumulateType<double> {
    using type = double;
};
template <class T>
using Accumulate = typename AccumulateType<T>::type;

template <class T>
VISIONLAB_HOST_DEVICE Accumulate<T> load(const T* from) {
    return static_cast<Accumulate<T>>(*from);
}

template <class T>
VISIONLAB_HOST_DEVICE void store(T* to, Accumulate<T> value) {
    *to = static_cast<T>(value);
}

// Adds to a value that other CUDA threads may add to as well; on the CPU one thread runs such functors.
template <class T>
VISIONLAB_HOST_DEVICE void add(T* target, Accumulate<T> value) {
#if defined(__CUDA_ARCH__)
    atomicAdd(target, static_cast<T>(value));
#else
    *target = static_cast<T>(static_cast<Accumulate<T>>(*target) + value);
#endif
}

}  // namespace visionlab

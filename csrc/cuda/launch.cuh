// Runs a functor of csrc/ops/*.h once for each index, in the dtype that the tensors have.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "../device.h"
#include "dtype.h"

namespace visionlab {

template <class Functor>
__global__ void __launch_bounds__(256) run(int64_t count, Functor functor) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) functor(i);
}

// Returns the cudaError_t of the launch.
template <class Functor>
int launch(int64_t count, const Functor& functor, void* stream) {
    if (count <= 0) return cudaSuccess;
    constexpr int64_t threads = 256;
    const int64_t blocks = std::min<int64_t>((count + threads - 1) / threads, 1 << 20);
    run<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(count, functor);
    return cudaGetLastError();
}

// Calls function(T{}) and returns what it returns.
template <class Function>
int dispatch_dtype(DType dtype, const Function& function) {
    switch (dtype) {
        case DType::float32:
            return function(float{});
        case DType::float64:
            return function(double{});
        case DType::float16:
            return function(__half{});
        case DType::bfloat16:
            return function(__nv_bfloat16{});
    }
    return cudaErrorInvalidValue;
}

}  // namespace visionlab

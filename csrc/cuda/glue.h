// What the glue of a CUDA kernel needs: its device and stream, its dtype, its errors.
#pragma once

#ifndef USE_CUDA
#define USE_CUDA  // declares the part of the stable interface that lies in libtorch_cuda
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../tensors.h"
#include "dtype.h"

namespace visionlab {

int set_cuda_device(int index);              // device.cu
const char* describe_cuda_error(int error);  // device.cu

inline void check_cuda(int error, const char* name) {
    if (error != 0) fail(name, ": CUDA error: ", describe_cuda_error(error));
}

// Makes the device of a tensor current for as long as it lives.
class CudaCall {
  public:
    explicit CudaCall(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
        // This library has its own CUDA runtime, which keeps its own current device.
        check_cuda(set_cuda_device(index_), "set device");
    }

    // torch's current stream on that device.
    void* stream() const {
        void* stream = nullptr;
        if (aoti_torch_get_current_cuda_stream(index_, &stream) != 0) fail("no current CUDA stream");
        return stream;
    }

  private:
    int32_t index_;
    torch::stable::accelerator::DeviceGuard guard_;
};

inline DType dtype_of(const Tensor& tensor, const char* name) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return DType::float32;
        case ScalarType::Double:
            return DType::float64;
        case ScalarType::Half:
            return DType::float16;
        case ScalarType::BFloat16:
            return DType::bfloat16;
        default:
            fail(name, ": expected float16, bfloat16, float32 or float64, got ",
                 torch::headeronly::toString(tensor.scalar_type()));
    }
}

}  // namespace visionlab

// The calls of this library's own CUDA runtime that the glue makes.
#include <cuda_runtime_api.h>

namespace visionlab {

int set_cuda_device(int index) { return cudaSetDevice(index); }

const char* describe_cuda_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace visionlab

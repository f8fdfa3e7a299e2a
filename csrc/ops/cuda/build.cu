// What the CUDA library was compiled with. Like every .cu file here it sees no torch header; build.cpp is its glue.
#include <cuda_runtime_api.h>

#include <string>

#define VISIONLAB_QUOTE(...) #__VA_ARGS__
#define VISIONLAB_EXPAND(...) VISIONLAB_QUOTE(__VA_ARGS__)

namespace visionlab {

std::string describe_cuda_build() {
    return "CUDA " + std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) +
           ", architectures " VISIONLAB_EXPAND(__CUDA_ARCH_LIST__);
}

}  // namespace visionlab

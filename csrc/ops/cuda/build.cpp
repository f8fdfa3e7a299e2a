#include "../../common.h"

namespace visionlab {

std::string describe_cuda_build();  // build.cu

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CompositeExplicitAutograd, m) {
    m.impl("cuda_build", TORCH_BOX(&visionlab::describe_cuda_build));
}

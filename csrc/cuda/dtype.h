// The dtypes that cross from the glue, which knows torch, to the .cu files, which do not.
#pragma once

namespace visionlab {

enum class DType { float32, float64, float16, bfloat16 };

}  // namespace visionlab

// What the glue of the deformable convolution calls; deform_conv2d.cu.
#pragma once

#include "../../cuda/dtype.h"
#include "../deform_conv2d_columns.h"

namespace visionlab {

int launch_deform_columns(DType dtype, const DeformTile& tile, void* stream);
int launch_deform_gradients(DType dtype, const DeformTile& tile, bool deterministic, void* stream);
int launch_deform_add(DType dtype, const void* from, void* to, int64_t count, void* stream);

}  // namespace visionlab

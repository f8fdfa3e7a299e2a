// The launches of ps_roi_pool.cu, for the glue.
#pragma once

#include "../../cuda/dtype.h"
#include "../rois.h"

namespace visionlab {

int cuda_ps_roi_pool(DType dtype, const void* input, const void* boxes, void* output, const MapLayout& map,
                     const MapLayout& pooled, double scale, void* stream);
int cuda_ps_roi_pool_backward(DType dtype, const void* grad, const void* boxes, void* output, const MapLayout& map,
                              const MapLayout& pooled, double scale, bool in_order, void* stream);

}  // namespace visionlab

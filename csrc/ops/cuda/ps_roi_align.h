// The launches of ps_roi_align.cu, for the glue.
#pragma once

#include "../../cuda/dtype.h"
#include "../rois.h"

namespace visionlab {

int cuda_ps_roi_align(DType dtype, const void* input, const void* boxes, void* output, const MapLayout& map,
                      const MapLayout& pooled, double scale, int64_t sampling_ratio, void* stream);
int cuda_ps_roi_align_backward(DType dtype, const void* grad, const void* boxes, void* output, const MapLayout& map,
                               const MapLayout& pooled, double scale, int64_t sampling_ratio, bool in_order,
                               void* stream);

}  // namespace visionlab

// One call of the CUDA kernels of nms, as its glue prepares it. No torch header, no CUDA header.
#pragma once

#include <cstdint>

#include "../../cuda/dtype.h"

namespace visionlab {

struct NmsCall {
    DType dtype;  // float32 or float64
    const void* boxes;
    const void* scores;
    const int64_t* groups;  // or null
    const int64_t* order;   // indices of the boxes, best score first
    int64_t count, words;   // words of 64 boxes
    double threshold;
    int64_t limit;  // most indices to answer
    bool pad;       // fill the answer up with zeros

    void* sorted;  // count boxes of 5 numbers
    int64_t* sorted_groups;
    unsigned long long* mask;  // rows * words
    int64_t rows;
    unsigned long long* removed;  // words
    int64_t* output;              // limit
    int64_t* total;               // 1: how many indices are kept boxes
};

// Each returns a cudaError_t. The first only queues work; the second waits for it and reads *total.
int launch_nms(const NmsCall& call, void* stream);
int read_count(const int64_t* total, int64_t* count, void* stream);

}  // namespace visionlab

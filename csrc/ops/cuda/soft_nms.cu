#include "../../cuda/launch.cuh"
#include "../soft_nms.h"

namespace visionlab {

namespace {

constexpr int threads = 1024;

template <class T>
struct Best {
    T score;
    int64_t index;

    // The higher score; of equal ones the box that comes first.
    __device__ void meet(T other, int64_t at) {
        if (other > score || (other == score && at < index)) score = other, index = at;
    }
};

template <class T>
__device__ Best<T> best_of_warp(Best<T> best) {
    for (int step = 16; step > 0; step /= 2) {
        const T score = __shfl_down_sync(0xffffffffu, best.score, step);
        const long long index = __shfl_down_sync(0xffffffffu, static_cast<long long>(best.index), step);
        best.meet(score, index);
    }
    return best;
}

// The same answer in every thread.
template <class T>
__device__ Best<T> best_of_block(Best<T> best) {
    __shared__ T scores[threads / 32];
    __shared__ int64_t indices[threads / 32];
    best = best_of_warp(best);
    __syncthreads();  // everyone has read the last answer
    if (threadIdx.x % 32 == 0) scores[threadIdx.x / 32] = best.score, indices[threadIdx.x / 32] = best.index;
    __syncthreads();
    best = {scores[0], indices[0]};
    for (int i = 1; i < threads / 32; ++i) best.meet(scores[i], indices[i]);
    return best;
}

// One block: every box in turn needs the scores that all before it left.
template <class T>
__global__ void __launch_bounds__(threads)
    soft_nms_kernel(const T* corners, const T* given, int64_t count, SoftNmsSettings<T> settings, Box<T>* boxes,
                    T* scores, int64_t* keep, T* lowered, int64_t* total) {
    Best<T> best{gone<T>(), count};
    for (int64_t i = threadIdx.x; i < count; i += threads) {
        T finite = given[i] - given[i];
        for (int k = 0; k < 4; ++k) finite += corners[4 * i + k] - corners[4 * i + k];
        boxes[i] = read_box(corners + 4 * i, xyxy);
        scores[i] = finite == T(0) && given[i] >= settings.score_threshold ? given[i] : gone<T>();
        best.meet(scores[i], i);
    }
    best = best_of_block(best);
    int64_t found = 0;
    for (; best.score > gone<T>(); ++found) {
        if (threadIdx.x == 0) keep[found] = best.index, lowered[found] = best.score;
        const Box<T> chosen = read_box(corners + 4 * best.index, xyxy);
        const int64_t taken = best.index;
        best = {gone<T>(), count};
        for (int64_t i = threadIdx.x; i < count; i += threads) {
            const T before = i == taken ? gone<T>() : scores[i];
            const T after = before > gone<T>() ? decayed(chosen, boxes[i], before, settings) : before;
            scores[i] = after;
            best.meet(after, i);
        }
        best = best_of_block(best);
    }
    if (threadIdx.x == 0) *total = found;
}

}  // namespace

int launch_soft_nms(DType dtype, const void* boxes, const void* scores, int64_t count, double iou_threshold,
                    double sigma, double score_threshold, int64_t method, void* read, void* current, int64_t* keep,
                    void* lowered, int64_t* total, void* stream) {
    const auto run_as = [&](auto zero) {
        using T = decltype(zero);
        soft_nms_kernel<<<1, threads, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(boxes), static_cast<const T*>(scores), count,
            soft_nms_settings<T>(iou_threshold, sigma, score_threshold, method), static_cast<Box<T>*>(read),
            static_cast<T*>(current), keep, static_cast<T*>(lowered), total);
        return cudaGetLastError();
    };
    return dtype == DType::float64 ? run_as(double{}) : run_as(float{});
}

}  // namespace visionlab

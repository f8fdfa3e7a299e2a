#include "../../cuda/launch.cuh"
#include "../nms.h"
#include "nms.h"

namespace visionlab {

namespace {

constexpr int threads = 1024;
constexpr int warps = threads / 32;
constexpr int64_t words_in_shared = 4096;  // 32 KiB

// What one warp knows of 64 boxes: lane i has boxes i and i + 32.
struct Diagonal {
    Word words[2];
    bool alive[2];
};

template <class T>
__device__ Diagonal read_diagonal(const Box<T>* boxes, int64_t count, int64_t words, const Word* mask, int64_t first,
                                  int64_t base) {
    Diagonal diagonal{};
    for (int half = 0; half < 2; ++half) {
        const int64_t i = base + threadIdx.x % 32 + 32 * half;
        if (i < count) {
            const T area = boxes[i].area;
            diagonal.alive[half] = area == area;
            diagonal.words[half] = mask[(i - first) * words + base / word_bits];
        }
    }
    return diagonal;
}

__device__ Word gather_bits(const bool (&bits)[2]) {
    const Word low = __ballot_sync(0xffffffffu, bits[0]), high = __ballot_sync(0xffffffffu, bits[1]);
    return high << 32 | low;
}

// One block settles boxes [first, first + rows) in order of score and marks what they remove among the later ones.
template <class T>
__global__ void __launch_bounds__(threads)
    scan(const Box<T>* boxes, int64_t count, int64_t words, int64_t first, int64_t rows, const Word* mask,
         Word* removed, const int64_t* order, int64_t limit, int64_t* output, int64_t* total) {
    __shared__ Word near[words_in_shared];
    __shared__ Word diagonal[word_bits];
    __shared__ Word stay;
    const bool fits = words <= words_in_shared;
    Word* state = fits ? near : removed;
    volatile Word* current = state;  // other threads change it by atomics, which do not pass through this one's cache
    if (fits) {
        for (int64_t i = threadIdx.x; i < words; i += threads) near[i] = removed[i];
    }
    int64_t found = *total;
    const int64_t end = first + rows < count ? first + rows : count;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Diagonal next{};
    if (warp == 0) next = read_diagonal(boxes, count, words, mask, first, first);
    __syncthreads();
    for (int64_t base = first; base < end && found < limit; base += word_bits) {
        const int64_t word = base / word_bits;
        if (warp == 0) {
            const bool active[2] = {next.words[0] != 0, next.words[1] != 0};
            const Word alive = gather_bits(next.alive), acting = gather_bits(active);
            diagonal[lane] = next.words[0];
            diagonal[lane + 32] = next.words[1];
            __syncwarp();
            const Word kept = settle(alive & ~current[word], acting, diagonal);
            if (lane == 0) stay = kept;
            if (base + word_bits < end) next = read_diagonal(boxes, count, words, mask, first, base + word_bits);
        }
        __syncthreads();
        const Word kept = stay;
        if (threadIdx.x < word_bits && (kept >> threadIdx.x & 1) != 0) {
            const int64_t place = found + __popcll(kept & ((Word(1) << threadIdx.x) - 1));
            if (place < limit) output[place] = order[base + threadIdx.x];
        }
        found += __popcll(kept);
        for (int64_t i = warp; i < word_bits; i += warps) {
            if ((kept >> i & 1) == 0) continue;
            const Word* row = mask + (base - first + i) * words;
#pragma unroll 4
            for (int64_t later = word + 1 + lane; later < words; later += 32) {
                const Word bits = row[later];
                if (bits != 0) atomicOr(state + later, bits);
            }
        }
        __syncthreads();
    }
    if (fits) {
        for (int64_t i = threadIdx.x; i < words; i += threads) removed[i] = near[i];
    }
    if (threadIdx.x == 0) *total = found < limit ? found : limit;
}

struct FillUp {
    const int64_t* total;
    int64_t* output;

    VISIONLAB_HOST_DEVICE void operator()(int64_t i) const {
        if (i >= *total) output[i] = 0;
    }
};

template <class T>
int launch_typed(const NmsCall& call, void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    Box<T>* sorted = static_cast<Box<T>*>(call.sorted);
    int error = cudaMemsetAsync(call.total, 0, sizeof(int64_t), on);
    if (error == cudaSuccess && call.words > 0) {
        error = cudaMemsetAsync(call.removed, 0, call.words * sizeof(Word), on);
    }
    if (error == cudaSuccess) {
        error = launch(call.count,
                       NmsGather<T>{static_cast<const T*>(call.boxes), static_cast<const T*>(call.scores), call.groups,
                                    call.order, sorted, call.sorted_groups},
                       stream);
    }
    for (int64_t first = 0; first < call.count && error == cudaSuccess; first += call.rows) {
        error = launch(call.rows * call.words,
                       NmsMask<T>{sorted, call.groups == nullptr ? nullptr : call.sorted_groups, call.count, call.words,
                                  first, call.rows, round_down<T>(call.threshold), call.mask},
                       stream);
        if (error != cudaSuccess) return error;
        scan<<<1, threads, 0, on>>>(sorted, call.count, call.words, first, call.rows, call.mask, call.removed,
                                    call.order, call.limit, call.output, call.total);
        error = cudaGetLastError();
    }
    if (error == cudaSuccess && call.pad) error = launch(call.limit, FillUp{call.total, call.output}, stream);
    return error;
}

}  // namespace

int launch_nms(const NmsCall& call, void* stream) {
    return call.dtype == DType::float64 ? launch_typed<double>(call, stream) : launch_typed<float>(call, stream);
}

int read_count(const int64_t* total, int64_t* count, void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    const cudaError_t error = cudaMemcpyAsync(count, total, sizeof(int64_t), cudaMemcpyDeviceToHost, on);
    return error == cudaSuccess ? cudaStreamSynchronize(on) : error;
}

}  // namespace visionlab

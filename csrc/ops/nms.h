// Non-maximum suppression as CUDA computes it: for each box, one bit for each later box that it would remove; then the
// boxes are settled in order of score, 64 at a time. No torch header: nvcc compiles it too.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "box_iou.h"

namespace visionlab {

using Word = unsigned long long;  // bits of 64 boxes; the type of CUDA's atomics

constexpr int64_t word_bits = 64;

// Writes box `i` in order of score. One that is not finite, or whose score is NaN, has NaN for its area: it counts as
// removed, and no comparison with its overlaps holds.
template <class T>
struct NmsGather {
    const T* boxes;
    const T* scores;
    const int64_t* groups;  // or null
    const int64_t* order;
    Box<T>* sorted;
    int64_t* sorted_groups;

    VISIONLAB_HOST_DEVICE void operator()(int64_t i) const {
        const T* from = boxes + 4 * order[i];
        Box<T> box = read_box(from, xyxy);
        T finite = scores[order[i]];
        finite = finite != finite ? finite : T(0);
        for (int k = 0; k < 4; ++k) finite += from[k] - from[k];
        box.area += finite;
        sorted[i] = box;
        if (groups != nullptr) sorted_groups[i] = groups[order[i]];
    }
};

// Writes for each of boxes [first, first + rows) the words of the later boxes that it removes if it is kept itself.
// Words of earlier boxes are left as they are: no one reads them.
template <class T>
struct NmsMask {
    const Box<T>* boxes;
    const int64_t* groups;  // or null
    int64_t count, words, first, rows;
    T threshold;
    Word* mask;

    VISIONLAB_HOST_DEVICE void operator()(int64_t index) const {
        const int64_t row = index % rows, word = index / rows;  // neighboring threads read the same later boxes
        const int64_t i = first + row, begin = word * word_bits;
        if (i >= count || word < i / word_bits) return;
        const Box<T> box = boxes[i];
        const int64_t end = begin + word_bits < count ? begin + word_bits : count;
        Word bits = 0;
        for (int64_t j = i + 1 > begin ? i + 1 : begin; j < end; ++j) {
            const bool removes = overlap(box, boxes[j]) > threshold && (groups == nullptr || groups[i] == groups[j]);
            bits |= static_cast<Word>(removes) << (j - begin);
        }
        mask[row * words + word] = bits;
    }
};

VISIONLAB_HOST_DEVICE inline int lowest_bit(Word word) {
#if defined(__CUDA_ARCH__)
    return __ffsll(static_cast<long long>(word)) - 1;
#else
    return __builtin_ctzll(word);
#endif
}

// Returns which of 64 boxes stay. `alive` are those that no earlier box removed, `active` those that remove any of the
// 64, and diagonal[i] what the i-th removes.
VISIONLAB_HOST_DEVICE inline Word settle(Word alive, Word active, const Word* diagonal) {
    Word kept = alive;
    for (Word todo = kept & active; todo != 0;) {
        const int i = lowest_bit(todo);
        kept &= ~diagonal[i];
        todo &= kept & (todo - 1);
    }
    return kept;
}

// How many boxes have their words in memory at once: the mask takes at most 64 MiB, or 64 rows if those take more.
inline int64_t nms_rows(int64_t count, int64_t words) {
    const int64_t fitting = (int64_t(64) << 20) / static_cast<int64_t>(sizeof(Word)) / std::max<int64_t>(words, 1);
    return std::min(std::max(fitting / word_bits * word_bits, word_bits),
                    (count + word_bits - 1) / word_bits * word_bits);
}

// The greatest value of T that is not above the threshold: `overlap > threshold` then means the same in T as in double.
template <class T>
T round_down(double threshold) {
    const T rounded = static_cast<T>(threshold);
    return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                                                    : rounded;
}

}  // namespace visionlab

// Non-maximum suppression: boxes in order of score, each kept box removes the later ones that overlap it too much.
#include "../nms.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../../scalar.h"
#include "../../simd.h"
#include "../../tensors.h"

namespace visionlab {

namespace {

constexpr int64_t block = 64;               // boxes that are settled among themselves before they act on later ones
constexpr int64_t near = 1024;              // later boxes that stay in the core's cache
constexpr int64_t worth_threads = 1 << 18;  // overlaps, some 0.1 ms

template <class T>
struct Boxes {
    std::vector<T> x1, y1, x2, y2, area;
    std::vector<T> removed;  // 1 or 0; as wide as a coordinate so that both move through vector registers together

    explicit Boxes(int64_t count) : x1(count), y1(count), x2(count), y2(count), area(count), removed(count) {}
};

// Removes those of boxes [from, to) whose overlap with box `i` is greater than `threshold`.
template <int Bytes, class T>
VISIONLAB_INLINE void suppress_body(Boxes<T>* const& boxes, int64_t i, int64_t from, int64_t to, T threshold) {
    const T x1 = boxes->x1[i], y1 = boxes->y1[i], x2 = boxes->x2[i], y2 = boxes->y2[i], area = boxes->area[i];
    const T *x1s = boxes->x1.data(), *y1s = boxes->y1.data(), *x2s = boxes->x2.data(), *y2s = boxes->y2.data();
    const T* areas = boxes->area.data();
    T* removed = boxes->removed.data();
    for (int64_t j = from; j < to; ++j) {
        const T left = x1 > x1s[j] ? x1 : x1s[j];
        const T top = y1 > y1s[j] ? y1 : y1s[j];
        const T right = x2 < x2s[j] ? x2 : x2s[j];
        const T bottom = y2 < y2s[j] ? y2 : y2s[j];
        const T width = right - left > T(0) ? right - left : T(0);
        const T height = bottom - top > T(0) ? bottom - top : T(0);
        const T shared = width * height;
        const T overlap = shared / (area + areas[j] - shared);
        removed[j] = overlap > threshold ? T(1) : removed[j];
    }
}

VISIONLAB_SIMD_LEVELS(suppress, suppress_body)

// Lets the boxes that are left of [begin, end) act on [from, to).
template <class T>
void suppress_later(Boxes<T>& boxes, int64_t begin, int64_t end, int64_t from, int64_t to, T threshold) {
    Boxes<T>* const all = &boxes;
    for (int64_t first = from; first < to; first += near) {
        for (int64_t i = begin; i < end; ++i) {
            if (boxes.removed[i] == T(0)) suppress(all, i, first, std::min(first + near, to), threshold);
        }
    }
}

// Settles boxes [from, to), which are in order of score. They go in a few large parts, since threads that meet often
// wait long where other programs hold their cores.
template <class T>
void settle_in_order(Boxes<T>& boxes, int64_t from, int64_t to, T threshold) {
    Boxes<T>* const all = &boxes;
    const int64_t parts = 4 * torch::stable::get_num_threads();
    const int64_t part = std::max(block, ((to - from) / parts + block) / block * block);
    for (int64_t begin = from; begin < to; begin += part) {
        const int64_t end = std::min(begin + part, to);
        for (int64_t first = begin; first < end; first += block) {
            const int64_t last = std::min(first + block, end);
            for (int64_t i = first; i < last; ++i) {
                if (boxes.removed[i] == T(0)) suppress(all, i, i + 1, last, threshold);
            }
            suppress_later(boxes, first, last, last, end, threshold);
        }
        const int64_t left = std::count(boxes.removed.begin() + begin, boxes.removed.begin() + end, T(0));
        const int64_t grain = std::max(near, worth_threads / std::max<int64_t>(left, 1));
        parallel_for(end, to, grain,
                     [&](int64_t first, int64_t last) { suppress_later(boxes, begin, end, first, last, threshold); });
    }
}

template <class T>
void check_values(const T* boxes, const T* scores, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < 4; ++j) {
            if (!std::isfinite(boxes[4 * i + j]))
                fail("nms: boxes: expected finite numbers, got ", boxes[4 * i + j], " in box ", i);
        }
        if (std::isnan(scores[i])) fail("nms: scores: expected no NaN, got one in box ", i);
    }
}

// The arguments of one call.
template <class T>
struct Candidates {
    const T* boxes;
    const T* scores;
    const int64_t* groups;  // or null
    int64_t count;

    int64_t group(int64_t i) const { return groups == nullptr ? 0 : groups[i]; }
    bool better(int64_t a, int64_t b) const { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; }
};

// The kept boxes as the CUDA kernels find them.
template <class T>
std::vector<int64_t> kept_by_mask(const Candidates<T>& all, double threshold) {
    std::vector<int64_t> order(all.count), groups(all.groups == nullptr ? 0 : all.count);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return all.better(a, b); });
    std::vector<Box<T>> boxes(all.count);
    for_each_index(all.count,
                   NmsGather<T>{all.boxes, all.scores, all.groups, order.data(), boxes.data(), groups.data()});
    const int64_t words = (all.count + word_bits - 1) / word_bits, rows = nms_rows(all.count, words);
    std::vector<Word> mask(rows * words), removed(words);
    std::vector<int64_t> result;
    for (int64_t first = 0; first < all.count; first += rows) {
        for_each_index(rows * words, NmsMask<T>{boxes.data(), all.groups == nullptr ? nullptr : groups.data(),
                                                all.count, words, first, rows, round_down<T>(threshold), mask.data()});
        for (int64_t base = first; base < std::min(first + rows, all.count); base += word_bits) {
            const int64_t word = base / word_bits, size = std::min(word_bits, all.count - base);
            Word diagonal[word_bits] = {}, active = 0, alive = 0;
            for (int64_t i = 0; i < size; ++i) {
                diagonal[i] = mask[(base - first + i) * words + word];
                active |= static_cast<Word>(diagonal[i] != 0) << i;
                alive |= static_cast<Word>(!std::isnan(boxes[base + i].area)) << i;
            }
            const Word stay = settle(alive & ~removed[word], active, diagonal);
            for (int64_t i = 0; i < size; ++i) {
                if ((stay >> i & 1) == 0) continue;
                result.push_back(order[base + i]);
                const Word* row = mask.data() + (base - first + i) * words;
                for (int64_t later = word + 1; later < words; ++later) removed[later] |= row[later];
            }
        }
    }
    return result;
}

template <class T>
std::vector<int64_t> kept(const Candidates<T>& all, double threshold) {
    check_values(all.boxes, all.scores, all.count);
    if (simd::level() == simd::Level::scalar) return kept_by_mask(all, threshold);
    std::vector<int64_t> order(all.count);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return all.group(a) != all.group(b) ? all.group(a) < all.group(b) : all.better(a, b);
    });

    Boxes<T> boxes(all.count);
    for (int64_t i = 0; i < all.count; ++i) {
        const T* box = all.boxes + 4 * order[i];
        boxes.x1[i] = box[0], boxes.y1[i] = box[1], boxes.x2[i] = box[2], boxes.y2[i] = box[3];
        boxes.area[i] = (box[2] - box[0]) * (box[3] - box[1]);
    }
    for (int64_t from = 0, to = 0; from < all.count; from = to) {
        while (to < all.count && all.group(order[to]) == all.group(order[from])) ++to;
        settle_in_order(boxes, from, to, round_down<T>(threshold));
    }

    std::vector<int64_t> result;
    for (int64_t i = 0; i < all.count; ++i) {
        if (boxes.removed[i] == T(0)) result.push_back(order[i]);
    }
    if (all.groups != nullptr) {
        std::sort(result.begin(), result.end(), [&](int64_t a, int64_t b) { return all.better(a, b); });
    }
    return result;
}

std::vector<int64_t> kept(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                          double iou_threshold) {
    const Tensor corners = torch::stable::contiguous(boxes), ranks = torch::stable::contiguous(scores);
    std::optional<Tensor> groups;
    if (idxs) groups = torch::stable::contiguous(*idxs);
    std::vector<int64_t> result;
    dispatch_floating("nms", boxes.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        result = kept(
            Candidates<T>{data<T>(corners), data<T>(ranks), groups ? data<int64_t>(*groups) : nullptr, boxes.size(0)},
            iou_threshold);
    });
    return result;
}

}  // namespace

Tensor nms(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs, double iou_threshold) {
    const std::vector<int64_t> result = kept(boxes, scores, idxs, iou_threshold);
    Tensor output = torch::stable::new_empty(boxes, {static_cast<int64_t>(result.size())}, ScalarType::Long);
    std::copy(result.begin(), result.end(), mutable_data<int64_t>(output));
    return output;
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                                      int64_t max_output) {
    const std::vector<int64_t> result = kept(boxes, scores, std::nullopt, iou_threshold);
    const int64_t count = std::min(static_cast<int64_t>(result.size()), max_output);
    Tensor indices = torch::stable::new_zeros(boxes, {max_output}, ScalarType::Long);
    std::copy(result.begin(), result.begin() + count, mutable_data<int64_t>(indices));
    Tensor total = torch::stable::new_empty(boxes, {}, ScalarType::Long);
    *mutable_data<int64_t>(total) = count;
    return {indices, total};
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("nms", TORCH_BOX(&visionlab::nms));
    m.impl("nms_padded", TORCH_BOX(&visionlab::nms_padded));
}

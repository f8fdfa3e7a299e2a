// Non-maximum suppression: boxes in order of score, each kept box removes the later ones that overlap it too much.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "../../common.h"
#include "../../simd.h"

namespace visionlab {

namespace {

constexpr int64_t block = 64;    // boxes that are settled among themselves before they act on the later ones
constexpr int64_t grain = 1024;  // later boxes per thread

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

// Settles boxes [from, to), which are in order of score.
template <class T>
void settle(Boxes<T>& boxes, int64_t from, int64_t to, T threshold) {
    Boxes<T>* const all = &boxes;
    for (int64_t begin = from; begin < to; begin += block) {
        const int64_t end = std::min(begin + block, to);
        for (int64_t i = begin; i < end; ++i) {
            if (boxes.removed[i] == T(0)) suppress(all, i, i + 1, end, threshold);
        }
        parallel_for(end, to, grain, [&](int64_t first, int64_t last) {
            for (int64_t i = begin; i < end; ++i) {
                if (boxes.removed[i] == T(0)) suppress(all, i, first, last, threshold);
            }
        });
    }
}

// The greatest value of T that is not above the threshold: `overlap > threshold` then means the same in T as in double.
template <class T>
T round_down(double threshold) {
    const T rounded = static_cast<T>(threshold);
    return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                                                    : rounded;
}

template <class T>
void check_values(const T* boxes, const T* scores, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < 4; ++j) {
            if (!std::isfinite(boxes[4 * i + j]))
                fail("nms: boxes must be finite, got ", boxes[4 * i + j], " in box ", i);
        }
        if (std::isnan(scores[i])) fail("nms: scores must not be NaN, got one for box ", i);
    }
}

template <class T>
std::vector<int64_t> kept(const T* corners, const T* scores, const int64_t* groups, int64_t count, double threshold) {
    check_values(corners, scores, count);
    const auto group = [&](int64_t i) { return groups == nullptr ? 0 : groups[i]; };
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return group(a) != group(b) ? group(a) < group(b) : scores[a] > scores[b];
    });

    Boxes<T> boxes(count);
    for (int64_t i = 0; i < count; ++i) {
        const T* box = corners + 4 * order[i];
        boxes.x1[i] = box[0], boxes.y1[i] = box[1], boxes.x2[i] = box[2], boxes.y2[i] = box[3];
        boxes.area[i] = (box[2] - box[0]) * (box[3] - box[1]);
    }
    for (int64_t from = 0, to = 0; from < count; from = to) {
        while (to < count && group(order[to]) == group(order[from])) ++to;
        settle(boxes, from, to, round_down<T>(threshold));
    }

    std::vector<int64_t> result;
    for (int64_t i = 0; i < count; ++i) {
        if (boxes.removed[i] == T(0)) result.push_back(order[i]);
    }
    if (groups != nullptr) {
        std::sort(result.begin(), result.end(),
                  [&](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
    }
    return result;
}

}  // namespace

Tensor nms(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs, double iou_threshold) {
    const Tensor corners = torch::stable::contiguous(boxes);
    const Tensor ranks = torch::stable::contiguous(scores);
    std::optional<Tensor> groups;
    if (idxs) groups = torch::stable::contiguous(*idxs);
    std::vector<int64_t> result;
    dispatch_floating("nms", boxes.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        result = kept(static_cast<const T*>(corners.const_data_ptr()), static_cast<const T*>(ranks.const_data_ptr()),
                      groups ? static_cast<const int64_t*>(groups->const_data_ptr()) : nullptr, boxes.size(0),
                      iou_threshold);
    });
    Tensor output = torch::stable::new_empty(boxes, {static_cast<int64_t>(result.size())}, ScalarType::Long);
    std::copy(result.begin(), result.end(), static_cast<int64_t*>(output.mutable_data_ptr()));
    return output;
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) { m.impl("nms", TORCH_BOX(&visionlab::nms)); }

// Soft-NMS: takes the box of the highest score, lowers the scores of those that overlap it, and goes on.
#include "../soft_nms.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "../../scalar.h"
#include "../../simd.h"
#include "../../tensors.h"

namespace visionlab {

namespace {

constexpr int64_t block = 1024;  // boxes of which the highest score is kept
constexpr int64_t blocks_a_task = 16;
constexpr int64_t lanes = 16;
constexpr int64_t sweep = 32;  // boxes chosen between two removals of those that are gone

// The boxes still in play, in their order, one array for each number, filled up to whole lanes with boxes that are
// gone.
template <class T>
struct Remaining {
    std::vector<T> x1, y1, x2, y2, area, score;
    std::vector<int64_t> index;
    std::vector<T> highest;  // of each block

    Remaining(const T* boxes, const T* scores, int64_t count, T score_threshold) {
        for (int64_t i = 0; i < count; ++i) {
            if (scores[i] >= score_threshold) push(read_box(boxes + 4 * i, xyxy), scores[i], i);
        }
        fill_up();
    }

    int64_t size() const { return static_cast<int64_t>(score.size()); }
    Box<T> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i], area[i]}; }

    void push(const Box<T>& box, T value, int64_t i) {
        x1.push_back(box.x1), y1.push_back(box.y1), x2.push_back(box.x2), y2.push_back(box.y2);
        area.push_back(box.area), score.push_back(value), index.push_back(i);
    }

    void fill_up() {
        while (size() % lanes != 0) push(Box<T>{}, gone<T>(), -1);
        highest.resize((size() + block - 1) / block);
    }

    void remove_gone() {
        int64_t to = 0;
        for (int64_t i = 0; i < size(); ++i) {
            if (score[i] == gone<T>()) continue;
            x1[to] = x1[i], y1[to] = y1[i], x2[to] = x2[i], y2[to] = y2[i], area[to] = area[i], score[to] = score[i];
            index[to++] = index[i];
        }
        for (std::vector<T>* numbers : {&x1, &y1, &x2, &y2, &area, &score}) numbers->resize(to);
        index.resize(to);
        fill_up();
    }
};

// Lowers the scores of block `number` and finds the highest of them.
template <int Bytes, int64_t method, class T>
VISIONLAB_INLINE void decay_block(Remaining<T>& boxes, const Box<T>& chosen, SoftNmsSettings<T> settings,
                                  int64_t number) {
    settings.method = method;  // known to the compiler
    const int64_t end = std::min((number + 1) * block, boxes.size());
    const T *x1 = boxes.x1.data(), *y1 = boxes.y1.data(), *x2 = boxes.x2.data(), *y2 = boxes.y2.data();
    const T* area = boxes.area.data();
    T* score = boxes.score.data();
    const Box<T> first = chosen;
    T most[lanes];
    std::fill(most, most + lanes, gone<T>());
    for (int64_t i = number * block; i < end; i += lanes) {
        T less[lanes];
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t j = i + lane;
            less[lane] = decayed(first, Box<T>{x1[j], y1[j], x2[j], y2[j], area[j]}, score[j], settings);
        }
        for (int64_t lane = 0; lane < lanes; ++lane) {
            score[i + lane] = less[lane];
            most[lane] = greater_of(less[lane], most[lane]);
        }
    }
    boxes.highest[number] = *std::max_element(most, most + lanes);
}

template <int Bytes, class T>
VISIONLAB_INLINE void decay_body(Remaining<T>* const& boxes, const Box<T>& chosen, const SoftNmsSettings<T>& settings,
                                 int64_t const& number) {
    if (settings.method == gaussian) {
        decay_block<Bytes, gaussian>(*boxes, chosen, settings, number);
    } else {
        decay_block<Bytes, linear>(*boxes, chosen, settings, number);
    }
}

VISIONLAB_SIMD_LEVELS(decay, decay_body)

// The same with the arithmetic of the CUDA kernel, one box at a time.
template <class T>
void decay_one_by_one(Remaining<T>* boxes, const Box<T>& chosen, const SoftNmsSettings<T>& settings, int64_t number) {
    T& most = boxes->highest[number] = gone<T>();
    for (int64_t i = number * block; i < std::min((number + 1) * block, boxes->size()); ++i) {
        boxes->score[i] = decayed(chosen, boxes->box(i), boxes->score[i], settings);
        most = greater_of(boxes->score[i], most);
    }
}

// The first box of the highest score; -1 when all are gone.
template <class T>
int64_t find_highest(const Remaining<T>& boxes) {
    const auto most = std::max_element(boxes.highest.begin(), boxes.highest.end());
    if (most == boxes.highest.end() || *most == gone<T>()) return -1;
    const auto begin = boxes.score.begin() + (most - boxes.highest.begin()) * block;
    return std::find(begin, boxes.score.end(), *most) - boxes.score.begin();
}

template <class T>
void check_values(const T* boxes, const T* scores, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < 4; ++j) {
            if (!std::isfinite(boxes[4 * i + j]))
                fail("soft_nms: boxes: expected finite numbers, got ", boxes[4 * i + j], " in box ", i);
        }
        if (!std::isfinite(scores[i]))
            fail("soft_nms: scores: expected finite numbers, got ", scores[i], " in box ", i);
    }
}

// Calls choose(index of the box, its score) in order.
template <class T, class Choose>
void soft_nms_of(const T* corners, const T* scores, int64_t count, const SoftNmsSettings<T>& settings,
                 const Choose& choose) {
    check_values(corners, scores, count);
    const bool scalar = simd::level() == simd::Level::scalar;
    Remaining<T> boxes(corners, scores, count, settings.score_threshold);
    Remaining<T>* const all = &boxes;
    for (int64_t i = 0; i < static_cast<int64_t>(boxes.highest.size()); ++i) {
        const auto begin = boxes.score.begin() + i * block;
        boxes.highest[i] = *std::max_element(begin, begin + std::min(block, boxes.size() - i * block));
    }
    for (int64_t step = 1;; ++step) {
        const int64_t best = find_highest(boxes);
        if (best < 0) return;
        choose(boxes.index[best], boxes.score[best]);
        const Box<T> chosen = boxes.box(best);
        boxes.score[best] = gone<T>();
        if (step % sweep == 0) boxes.remove_gone();
        parallel_for(0, static_cast<int64_t>(boxes.highest.size()), blocks_a_task, [&](int64_t from, int64_t to) {
            for (int64_t number = from; number < to; ++number) {
                scalar ? decay_one_by_one(all, chosen, settings, number) : decay(all, chosen, settings, number);
            }
        });
    }
}

}  // namespace

std::tuple<Tensor, Tensor> soft_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, double sigma,
                                    double score_threshold, int64_t method) {
    const Tensor corners = torch::stable::contiguous(boxes), given = torch::stable::contiguous(scores);
    std::vector<int64_t> indices;
    std::vector<double> values;
    dispatch_floating("soft_nms", boxes.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        soft_nms_of(data<T>(corners), data<T>(given), boxes.size(0),
                    soft_nms_settings<T>(iou_threshold, sigma, score_threshold, method), [&](int64_t index, T score) {
                        indices.push_back(index);
                        values.push_back(score);
                    });
    });
    const auto count = static_cast<int64_t>(indices.size());
    Tensor keep = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
    Tensor kept_scores = torch::stable::new_empty(boxes, {count});
    std::copy(indices.begin(), indices.end(), mutable_data<int64_t>(keep));
    dispatch_floating("soft_nms", boxes.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        std::transform(values.begin(), values.end(), mutable_data<T>(kept_scores),
                       [](double value) { return static_cast<T>(value); });
    });
    return {keep, kept_scores};
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) { m.impl("soft_nms", TORCH_BOX(&visionlab::soft_nms)); }

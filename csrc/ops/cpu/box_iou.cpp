// Intersection over union of each pair of boxes. The answer is far larger than the boxes, so its rows are written once,
// in vectors over the second boxes; the gradient goes through tiles of pairs, in vectors over the boxes it belongs to.
#include "../box_iou.h"

#include <algorithm>

#include "../../scalar.h"
#include "../../simd.h"
#include "../../tensors.h"

namespace visionlab {

namespace {

constexpr int64_t pairs_per_task = 1 << 15;
constexpr int64_t lanes = 16;  // boxes whose gradients are summed side by side, whatever the instruction set

// One array for each number of a box.
template <class T>
struct Columns {
    int64_t count;
    Scratch<T> numbers;

    Columns(const T* boxes, int64_t count, int64_t format) : count(count), numbers(5 * count) {
        T* to = numbers.data();
        for (int64_t i = 0; i < count; ++i) {
            const Box<T> box = read_box(boxes + 4 * i, format);
            to[i] = box.x1, to[count + i] = box.y1, to[2 * count + i] = box.x2, to[3 * count + i] = box.y2;
            to[4 * count + i] = box.area;
        }
    }
    Box<T> box(int64_t i) const {
        const T* from = numbers.data() + i;
        return {from[0], from[count], from[2 * count], from[3 * count], from[4 * count]};
    }
};

// Writes the overlaps of one box with boxes [first, first + count).
template <int Bytes, class T>
VISIONLAB_INLINE void row_body(const Box<T>& box, const Columns<T>& others, int64_t const& first, int64_t const& count,
                               T* const& output) {
    const T* x1 = others.numbers.data() + first;
    const T *y1 = x1 + others.count, *x2 = y1 + others.count, *y2 = x2 + others.count, *area = y2 + others.count;
    const Box<T> a = box;
    T* to = output;
    for (int64_t j = 0; j < count; ++j) to[j] = overlap(a, Box<T>{x1[j], y1[j], x2[j], y2[j], area[j]});
}

VISIONLAB_SIMD_LEVELS(row, row_body)

// Some boxes, side by side, and a tile of the gradient: grads[k][lane] belongs to the k-th of the other boxes.
template <class T>
struct Tile {
    T boxes[5][lanes] = {};
    T grads[lanes][lanes] = {};
    T sums[5][lanes] = {};
};

// Adds to the sums what other boxes [first, first + count) give.
template <int Bytes, class T>
VISIONLAB_INLINE void tile_body(Tile<T>* const& tile, const Columns<T>& others, int64_t const& first,
                                int64_t const& count) {
    const Tile<T> from = *tile;
    T sums[5][lanes];
    std::copy_n(&from.sums[0][0], 5 * lanes, &sums[0][0]);
    for (int64_t k = 0; k < count; ++k) {
        const Box<T> other = others.box(first + k);
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const Box<T> box{from.boxes[0][lane], from.boxes[1][lane], from.boxes[2][lane], from.boxes[3][lane],
                             from.boxes[4][lane]};
            BoxGradient<T> sum{sums[0][lane], sums[1][lane], sums[2][lane], sums[3][lane], sums[4][lane]};
            add_gradient(box, other, from.grads[k][lane], sum);
            sums[0][lane] = sum.x1, sums[1][lane] = sum.y1, sums[2][lane] = sum.x2, sums[3][lane] = sum.y2;
            sums[4][lane] = sum.area;
        }
    }
    std::copy_n(&sums[0][0], 5 * lanes, &tile->sums[0][0]);
}

VISIONLAB_SIMD_LEVELS(add_tile, tile_body)

// Writes the gradients of boxes [from, from + count), at most `lanes` of one matrix of the batch.
template <class T>
void backward_of_lanes(const BoxIoUBackward<T>& task, const Columns<T>& others, int64_t from, int64_t count) {
    const int64_t matrix = from / task.rows;
    const T* lines = task.grad + matrix * task.batch_stride + from % task.rows * task.row_stride;
    Tile<T> tile;
    Tile<T>* const target = &tile;
    for (int64_t lane = 0; lane < count; ++lane) {
        const Box<T> box = read_box(task.boxes + 4 * (from + lane), task.format);
        const T numbers[5] = {box.x1, box.y1, box.x2, box.y2, box.area};
        for (int i = 0; i < 5; ++i) tile.boxes[i][lane] = numbers[i];
    }
    for (int64_t first = 0; first < task.columns; first += lanes) {
        const int64_t width = std::min(lanes, task.columns - first);
        for (int64_t k = 0; k < width; ++k) {
            const T* line = lines + (first + k) * task.column_stride;
            for (int64_t lane = 0; lane < count; ++lane) tile.grads[k][lane] = line[lane * task.row_stride];
        }
        add_tile(target, others, matrix * task.columns + first, width);
    }
    for (int64_t lane = 0; lane < count; ++lane) {
        const BoxGradient<T> sum{tile.sums[0][lane], tile.sums[1][lane], tile.sums[2][lane], tile.sums[3][lane],
                                 tile.sums[4][lane]};
        write_gradient(task.boxes + 4 * (from + lane), sum, task.format, task.output + 4 * (from + lane));
    }
}

template <class T>
void forward(const BoxIoU<T>& task, int64_t batch) {
    if (simd::level() == simd::Level::scalar) return for_each_index(batch * task.rows * task.columns, task);
    const Columns<T> others(task.boxes2, batch * task.columns, task.format);
    const int64_t grain = std::max<int64_t>(pairs_per_task / std::max<int64_t>(task.columns, 1), 1);
    parallel_for(0, batch * task.rows, grain, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
            const Box<T> box = read_box(task.boxes1 + 4 * i, task.format);
            row(box, others, i / task.rows * task.columns, task.columns, task.output + i * task.columns);
        }
    });
}

template <class T>
void backward(const BoxIoUBackward<T>& task, int64_t batch) {
    if (simd::level() == simd::Level::scalar) return for_each_index(batch * task.rows, task);
    const Columns<T> others(task.others, batch * task.columns, task.format);
    const int64_t blocks = (task.rows + lanes - 1) / lanes;
    const int64_t grain = std::max<int64_t>(pairs_per_task / lanes / std::max<int64_t>(task.columns, 1), 1);
    parallel_for(0, batch * blocks, grain, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
            const int64_t row = i % blocks * lanes;
            backward_of_lanes(task, others, i / blocks * task.rows + row, std::min(lanes, task.rows - row));
        }
    });
}

}  // namespace

Tensor box_iou(const Tensor& boxes1, const Tensor& boxes2, int64_t format) {
    const Tensor first = torch::stable::contiguous(boxes1), second = torch::stable::contiguous(boxes2);
    const int64_t batch = boxes1.size(0), rows = boxes1.size(1), columns = boxes2.size(1);
    Tensor output = new_output(boxes1, {batch, rows, columns}, false);
    dispatch_floating("box_iou", boxes1.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        forward(BoxIoU<T>{data<T>(first), data<T>(second), rows, columns, format, mutable_data<T>(output)}, batch);
    });
    return output;
}

Tensor box_iou_backward(const Tensor& grad, const Tensor& boxes, const Tensor& others, int64_t format) {
    const Tensor first = torch::stable::contiguous(boxes), second = torch::stable::contiguous(others);
    const int64_t batch = boxes.size(0), rows = boxes.size(1), columns = others.size(1);
    Tensor output = new_output(boxes, {batch, rows, 4}, false);
    dispatch_floating("box_iou_backward", boxes.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        backward(BoxIoUBackward<T>{data<T>(grad), grad.stride(0), grad.stride(1), grad.stride(2), data<T>(first),
                                   data<T>(second), rows, columns, format, mutable_data<T>(output)},
                 batch);
    });
    return output;
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) {
    m.impl("box_iou", TORCH_BOX(&visionlab::box_iou));
    m.impl("box_iou_backward", TORCH_BOX(&visionlab::box_iou_backward));
}

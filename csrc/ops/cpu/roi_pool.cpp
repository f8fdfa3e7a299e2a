// RoIPool. A maximum may count a cell twice, so a bin of n rows needs no more than a few reads per column from a table
// that holds the maximum of every 2^k rows; tables of k = 1, 2, ... are made one from the other, and boxes wait for the
// one that suits the height of their bins. Maps pass through in lines of channels, one cache line per pixel. The cell
// of a maximum is looked for afterwards, where the backward pass will need it.
#include "../../scalar.h"
#include "roi_pool_lines.h"

namespace visionlab {

namespace {

// The tables of one line of channels, and what is pooled from them.
template <class T>
class LinePool {
  public:
    LinePool(const RoIs::Part& part, const MapLayout& map, const MapLayout& pooled, bool tables, bool with_cells)
        : part_(part),
          map_(map),
          pooled_(pooled),
          with_cells_(with_cells),
          values_(part.area()),
          table_(tables ? part.area() : 0),
          maxima_(part.columns.count()),
          output_(pooled.area()),
          output_cells_(with_cells ? pooled.area() : 0),
          argmax_(with_cells && sizeof(T) != sizeof(int32_t) ? pooled.area() * line_channels<T> : 0) {}

    void read(const T* input, int64_t channels) {
        level_ = 0;
        const int64_t width = part_.columns.count(), stride = map_.channels_last ? map_.channels : map_.area();
        for (int64_t y = part_.rows.begin; y < part_.rows.end; ++y) {
            T* lines = values_.data() + (y - part_.rows.begin) * width * line_channels<T>;
            const int64_t cell = y * map_.width + part_.columns.begin;
            pack(input + cell * map_.pixel_stride(), map_.channels_last, stride, channels, width, lines);
            make_comparable(lines, width);
        }
    }

    // Goes on to maxima of twice as many rows.
    void double_window() {
        const int64_t width = part_.columns.count(), step = int64_t(1) << level_;
        const T* from = level_ == 0 ? values_.data() : table_.data();
        const int64_t rows = part_.rows.count() - 2 * step + 1;
        if (rows > 0) double_windows(from, rows * width, step * width, table_.data());
        ++level_;
    }

    int64_t level() const { return level_; }

    void write(const RoI& roi, int64_t channel, int64_t channels, T* output, int32_t* argmax) {
        const Table<T> map{values_.data(), 0}, table{table_.data(), level_};
        const Block<T> block{map,
                             level_ == 0 ? map : table,
                             part_.rows.begin,
                             part_.columns.begin,
                             part_.columns.count(),
                             map_.width,
                             maxima_.data()};
        T* const line = output_.data();
        Index<T>* const cells = with_cells_ ? output_cells_.data() : nullptr;
        pool(block, roi, pooled_, line, cells);
        const int64_t at = pooled_.plane(roi.index, channel);
        const int64_t stride = pooled_.channels_last ? pooled_.channels : pooled_.area();
        unpack(line, line_channels<T>, pooled_.channels_last, stride, channels, pooled_.area(), output + at);
        if (!with_cells_) return;
        const int32_t* narrow;
        if constexpr (sizeof(T) == sizeof(int32_t)) {
            narrow = cells;
        } else {
            std::copy_n(cells, pooled_.area() * line_channels<T>, argmax_.data());
            narrow = argmax_.data();
        }
        unpack(narrow, line_channels<T>, pooled_.channels_last, stride, channels, pooled_.area(), argmax + at);
    }

  private:
    const RoIs::Part& part_;
    const MapLayout &map_, &pooled_;
    const bool with_cells_;
    int64_t level_ = 0;
    const Lines<T> values_, table_;
    const Lines<T> maxima_;
    const Lines<T> output_;
    const Lines<Index<T>> output_cells_;
    const Scratch<int32_t> argmax_;
};

template <class T>
void pool_all(const T* input, const T* boxes, const MapLayout& map, const MapLayout& pooled, T scale, T* output,
              int32_t* argmax) {
    // Where cells are asked for, all of a bin is read to find them: maxima of several rows would save nothing.
    const RoIs rois(boxes, map, pooled, scale, argmax == nullptr);
    const auto make_line = [&](int64_t n) {
        const int64_t end = rois.first[n + 1];
        const bool tables = rois.first[n] < end && rois.all[end - 1].level > 0;
        return LinePool<T>(rois.part[n], map, pooled, tables, argmax != nullptr);
    };
    for_each_part(map, line_channels<T>, make_line,
                  [&](LinePool<T>& line, int64_t n, int64_t channel, int64_t channels) {
                      if (rois.first[n] == rois.first[n + 1]) return;
                      line.read(input + map.plane(n, channel), channels);
                      for (int64_t i = rois.first[n]; i < rois.first[n + 1]; ++i) {
                          while (line.level() < rois.all[i].level) line.double_window();
                          line.write(rois.all[i], channel, channels, output, argmax);
                      }
                  });
}

MapLayout layout_of(const Tensor& tensor, bool channels_last) {
    return {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3), channels_last};
}

// Of no size where it is not asked for.
Tensor new_argmax(const Tensor& input, const MapLayout& pooled, bool wanted) {
    if (!wanted) return torch::stable::new_empty(input, {0}, ScalarType::Int);
    return new_output(input, {pooled.batch, pooled.channels, pooled.height, pooled.width}, pooled.channels_last,
                      ScalarType::Int);
}

}  // namespace

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& boxes, int64_t pooled_height,
                                    int64_t pooled_width, double spatial_scale, bool with_argmax) {
    const bool channels_last = is_channels_last(input);
    const MapLayout map = layout_of(input, channels_last);
    const MapLayout pooled{boxes.size(0), map.channels, pooled_height, pooled_width, channels_last};
    check_area(map);
    const Tensor source = torch::stable::contiguous(input, format(channels_last));
    const Tensor rows = torch::stable::contiguous(boxes);
    Tensor output = new_output(input, {pooled.batch, pooled.channels, pooled.height, pooled.width}, channels_last);
    Tensor argmax = new_argmax(input, pooled, with_argmax);
    dispatch_floating("roi_pool", input.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        check_boxes("roi_pool", data<T>(rows), pooled.batch, map.batch);
        const T scale = static_cast<T>(spatial_scale);
        int32_t* cells = with_argmax ? mutable_data<int32_t>(argmax) : nullptr;
        if (simd::level() == simd::Level::scalar) {
            for_each_index(pooled.count(), RoIPoolForward<T>{data<T>(source), data<T>(rows), mutable_data<T>(output),
                                                             cells, map, pooled, scale});
        } else {
            pool_all(data<T>(source), data<T>(rows), map, pooled, scale, mutable_data<T>(output), cells);
        }
    });
    return {output, argmax};
}

}  // namespace visionlab

STABLE_TORCH_LIBRARY_IMPL(visionlab, CPU, m) { m.impl("roi_pool", TORCH_BOX(&visionlab::roi_pool)); }

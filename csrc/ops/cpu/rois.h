// Boxes as the CPU kernels of the pooling operators take them, and maps packed into lines of channels.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "../../channels.h"
#include "../../tensors.h"
#include "../rois.h"

namespace visionlab {

// Refuses boxes that are not finite or that name no image.
template <class T>
void check_boxes(const char* name, const T* boxes, int64_t count, int64_t batch) {
    for (int64_t k = 0; k < count; ++k) {
        const T* box = boxes + 5 * k;
        for (int64_t i = 0; i < 5; ++i) {
            if (!std::isfinite(box[i])) fail(name, ": boxes: expected finite numbers, got ", box[i], " in box ", k);
        }
        if (image_of(box, batch) < 0) {
            fail(name, ": boxes: expected image indices in [0, ", batch, "), got ", box[0], " in box ", k);
        }
    }
}

// Maps are worked on in blocks of this many channels, which lie side by side and fill one cache line per pixel.
template <class T>
constexpr int64_t line_channels = 64 / sizeof(T);

// An uninitialized buffer of cache lines.
template <class T>
class Lines {
  public:
    explicit Lines(int64_t count) : buffer_((count + 1) * line_channels<T>) {
        const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(buffer_.data());
        data_ = reinterpret_cast<T*>((address + 63) / 64 * 64);
    }
    T* data() const { return data_; }

  private:
    Scratch<T> buffer_;
    T* data_;
};

// Copies `channels` values of each pixel. The usual number is known to the compiler, which then moves whole vectors.
template <class T>
void copy_pixels(const T* from, int64_t from_stride, int64_t channels, int64_t pixels, T* to, int64_t to_stride) {
    if (channels == line_channels<T>) {
        for (int64_t i = 0; i < pixels; ++i) {
            std::memcpy(to + i * to_stride, from + i * from_stride, line_channels<T> * sizeof(T));
        }
    } else {
        for (int64_t i = 0; i < pixels; ++i) {
            std::memcpy(to + i * to_stride, from + i * from_stride, channels * sizeof(T));
        }
    }
}

// Copies `channels` channels of `pixels` pixels to lines; what is left of each line becomes 0.
template <class T>
void pack(const T* from, bool channels_last, int64_t stride, int64_t channels, int64_t pixels, T* lines) {
    constexpr int64_t width = line_channels<T>;
    if (channels < width) std::fill_n(lines, pixels * width, T(0));
    if (!channels_last) return transpose(from, stride, channels, pixels, lines, width);
    copy_pixels(from, stride, channels, pixels, lines, width);
}

// The way back, from lines of `width` values.
template <class T>
void unpack(const T* lines, int64_t width, bool channels_last, int64_t stride, int64_t channels, int64_t pixels,
            T* to) {
    if (!channels_last) return transpose(lines, width, pixels, channels, to, stride);
    copy_pixels(lines, width, channels, pixels, to, stride);
}

}  // namespace visionlab

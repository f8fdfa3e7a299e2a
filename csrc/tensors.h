// Tensors of the stable ABI as kernels see them: memory formats, fresh answers, typed pointers.
#pragma once

#include <initializer_list>

#include "common.h"
#include "memory.h"

namespace visionlab {

// Whether torch would call the (N, C, H, W) tensor channels-last and not contiguous.
inline bool is_channels_last(const Tensor& tensor) {
    if (tensor.is_contiguous()) return false;
    int64_t expected = 1;
    for (const int64_t dim : {1, 3, 2, 0}) {
        if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return false;
        expected *= tensor.size(dim);
    }
    return true;
}

inline MemoryFormat format(bool channels_last) {
    return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// An uninitialized (N, C, H, W) answer on the device of another tensor. Its pages are made by all threads, each its
// own: two that meet a fresh page at once would both clear it.
inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> shape, bool channels_last,
                         ScalarType dtype) {
    Tensor output =
        torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt, format(channels_last));
    if (!like.is_cuda()) {
        const int64_t bytes = output.numel() * static_cast<int64_t>(output.element_size());
        if (bytes < huge_page) return output;
        const HugePages pages = use_huge_pages(output.mutable_data_ptr(), bytes);
        parallel_for(0, pages.count, 1, [&](int64_t from, int64_t to) {
            for (int64_t page = from; page < to; ++page) pages.begin[page * huge_page] = 0;
        });
    }
    return output;
}

inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> shape, bool channels_last) {
    return new_output(like, shape, channels_last, like.scalar_type());
}

template <class T>
const T* data(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace visionlab

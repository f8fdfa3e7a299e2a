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

// An uninitialized (N, C, H, W) answer with the dtype and device of another tensor.
inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> shape, bool channels_last) {
    Tensor output = torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                                         format(channels_last));
    if (!like.is_cuda()) {
        use_huge_pages(output.mutable_data_ptr(), output.numel() * static_cast<int64_t>(output.element_size()));
    }
    return output;
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

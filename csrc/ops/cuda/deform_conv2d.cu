#include "../../cuda/launch.cuh"
#include "deform_conv2d.h"

namespace visionlab {

namespace {

constexpr int lanes = 32;  // a warp works on one sample

int64_t calls(const DeformTile& tile) { return tile.count * tile.shape.taps() * tile.shape.offset_groups * lanes; }

}  // namespace

int launch_deform_columns(DType dtype, const DeformTile& tile, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        constexpr int span = sizeof(T) == 8 ? 2 : 4;
        const bool aligned = reinterpret_cast<std::uintptr_t>(tile.input) % (span * sizeof(T)) == 0 &&
                             tile.shape.shared() % span == 0 && tile.shape.inner() % span == 0;
        if (aligned) return launch(calls(tile), DeformColumns<T, span>{tile, lanes}, stream);
        return launch(calls(tile), DeformColumns<T, 1>{tile, lanes}, stream);
    });
}

int launch_deform_gradients(DType dtype, const DeformTile& tile, bool deterministic, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) -> int {
        using T = decltype(zero);
        if (!deterministic) return launch(calls(tile), DeformGradients<T>{tile, lanes}, stream);
        if (tile.input_grad) {
            const int64_t planes = tile.shape.batch * tile.shape.channels;
            const int error = launch(planes, DeformInputGradientInOrder<T>{tile}, stream);
            if (error != 0) return error;
        }
        if (tile.offset_grad.data == nullptr) return 0;
        DeformTile rest = tile;
        rest.input_grad = nullptr;
        return launch(calls(rest), DeformGradients<T>{rest, lanes}, stream);
    });
}

int launch_deform_add(DType dtype, const void* from, void* to, int64_t count, void* stream) {
    return dispatch_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        return launch(count, DeformAdd<T>{static_cast<const T*>(from), static_cast<Accumulate<T>*>(to)}, stream);
    });
}

}  // namespace visionlab

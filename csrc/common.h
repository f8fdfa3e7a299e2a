// What every kernel file needs: tensors of the stable ABI, errors with a plain text, dispatch on dtype, threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <exception>
#include <mutex>
#include <sstream>
#include <stdexcept>

namespace visionlab {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError with exactly this text; the ABI's own macro puts the C++ function and line in front of it.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

// Calls function(float{}) or function(double{}). Half types are cast by the Python front end.
template <class Function>
void dispatch_floating(const char* name, ScalarType dtype, const Function& function) {
    if (dtype == ScalarType::Float) {
        function(float{});
    } else if (dtype == ScalarType::Double) {
        function(double{});
    } else {
        fail(name, ": expected float32 or float64, got ", torch::headeronly::toString(dtype));
    }
}

// torch's own thread pool. An exception must not cross it, so the first one is carried around it.
template <class Function>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Function& function) {
    std::exception_ptr error;
    std::mutex guard;
    torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
        try {
            function(from, to);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
        }
    });
    if (error) std::rethrow_exception(error);
}

}  // namespace visionlab

// One binary for every CPU: a kernel is compiled once per instruction set and the best one is taken at run time.
#pragma once

#include <cstring>

#if defined(__GNUC__)
#define VISIONLAB_INLINE inline __attribute__((always_inline))
#else
#define VISIONLAB_INLINE inline
#endif

namespace visionlab::simd {

// `scalar` runs the arithmetic of the CUDA kernels on the CPU, one value at a time; the others run the CPU's own
// kernels, in vectors of the instruction set (`baseline`: what every CPU of the architecture has).
enum class Level { scalar, baseline, avx2, avx512 };

// The best level of this CPU, or a lower one that the environment asks for: VISIONLAB_SIMD=scalar|baseline|avx2|avx512.
Level level();

const char* name(Level level);

// `Bytes / sizeof(T)` values that are computed on together, in registers of the instruction set in force.
template <class T, int Bytes>
struct Vector {
    typedef T type __attribute__((vector_size(Bytes)));
    static constexpr int lanes = Bytes / sizeof(T);

    static VISIONLAB_INLINE type load(const T* from) {
        type value;
        std::memcpy(&value, from, Bytes);
        return value;
    }
    static VISIONLAB_INLINE void store(T* to, type value) { std::memcpy(to, &value, Bytes); }
};

}  // namespace visionlab::simd

// Defines `NAME(arguments...)`, which calls the always-inline `BODY<vector bytes>(arguments...)` compiled for the
// level in force. Multiplication and addition are never fused (-ffp-contract=off), so all vector levels give the same
// bits.
#if defined(__x86_64__) && defined(__GNUC__)
#define VISIONLAB_SIMD_LEVELS(NAME, BODY)                                                         \
    template <class... Arguments>                                                                 \
    __attribute__((target("arch=x86-64-v3"))) void NAME##_avx2(const Arguments&... arguments) {   \
        BODY<32>(arguments...);                                                                   \
    }                                                                                             \
    template <class... Arguments>                                                                 \
    __attribute__((target("arch=x86-64-v4"))) void NAME##_avx512(const Arguments&... arguments) { \
        BODY<64>(arguments...);                                                                   \
    }                                                                                             \
    template <class... Arguments>                                                                 \
    void NAME(const Arguments&... arguments) {                                                    \
        switch (::visionlab::simd::level()) {                                                     \
            case ::visionlab::simd::Level::avx512:                                                \
                return NAME##_avx512(arguments...);                                               \
            case ::visionlab::simd::Level::avx2:                                                  \
                return NAME##_avx2(arguments...);                                                 \
            case ::visionlab::simd::Level::baseline:                                              \
            case ::visionlab::simd::Level::scalar:                                                \
                return BODY<16>(arguments...);                                                    \
        }                                                                                         \
    }
#else
#define VISIONLAB_SIMD_LEVELS(NAME, BODY)      \
    template <class... Arguments>              \
    void NAME(const Arguments&... arguments) { \
        BODY<16>(arguments...);                \
    }
#endif

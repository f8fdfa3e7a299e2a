#include "simd.h"

#include <cstdlib>
#include <string>

#include "common.h"

namespace visionlab::simd {

namespace {

Level best() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx2) return avx512 ? Level::avx512 : Level::avx2;
#endif
    return Level::baseline;
}

Level choose() {
    const char* wish = std::getenv("VISIONLAB_SIMD");
    if (wish == nullptr || *wish == '\0') return best();
    for (const Level level : {Level::scalar, Level::baseline, Level::avx2, Level::avx512}) {
        if (std::string(wish) != name(level)) continue;
        if (level > best()) fail("VISIONLAB_SIMD: expected at most ", name(best()), ", which this CPU has, got ", wish);
        return level;
    }
    fail("VISIONLAB_SIMD: expected scalar, baseline, avx2 or avx512, got ", wish);
}

}  // namespace

Level level() {
    static const Level chosen = choose();
    return chosen;
}

const char* name(Level level) {
    switch (level) {
        case Level::avx512:
            return "avx512";
        case Level::avx2:
            return "avx2";
        case Level::baseline:
            return "baseline";
        case Level::scalar:
            return "scalar";
    }
    return "";
}

}  // namespace visionlab::simd

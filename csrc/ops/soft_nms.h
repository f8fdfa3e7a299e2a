// Soft-NMS: how the score of one box decays beside a chosen one. No torch header: nvcc compiles it too.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "box_iou.h"

namespace visionlab {

enum SoftNmsMethod : int64_t { linear, gaussian };

template <class T>
struct ExpParts;

template <>
struct ExpParts<float> {
    using Bits = int32_t;
    static constexpr float lowest = -87.0f;          // e to less than this is 0 here: the rest is no normal number
    static constexpr float ln2_high = 0.693359375f;  // ln 2 in two parts; few digits in the first
    static constexpr float ln2_low = -2.12194440e-4f;
    static constexpr float shift = 12582912.0f;  // adding 1.5 * 2^23 leaves an integer in the low bits
    static constexpr int bias = 127, mantissa = 23, terms = 7;
};

template <>
struct ExpParts<double> {
    using Bits = int64_t;
    static constexpr double lowest = -708.0;
    static constexpr double ln2_high = 6.93145751953125e-1;
    static constexpr double ln2_low = 1.42860682030941723212e-6;
    static constexpr double shift = 6755399441055744.0;
    static constexpr int bias = 1023, mantissa = 52, terms = 13;
};

// e to a number that is not positive, to about one unit in the last place: powers of 2 times the series of a remainder
// below ln(2) / 2. Written out so that vectors of any width and all devices give the same.
template <class T>
VISIONLAB_HOST_DEVICE inline T exp_of_negative(T x) {
    using Parts = ExpParts<T>;
    using Bits = typename Parts::Bits;
    const T bounded = x > Parts::lowest ? x : Parts::lowest;
    const T shifted = product(bounded, T(1.44269504088896340736)) + Parts::shift;
    const T power = shifted - Parts::shift;
    const T remainder = bounded - product(power, Parts::ln2_high) - product(power, Parts::ln2_low);
    T series = T(1);
    for (int k = Parts::terms; k > 0; --k) series = T(1) + product(product(series, remainder), T(1) / T(k));
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = static_cast<Bits>(static_cast<std::make_unsigned_t<Bits>>(bits + Parts::bias) << Parts::mantissa);
    T scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x > Parts::lowest ? product(series, scale) : T(0);
}

template <class T>
struct SoftNmsSettings {
    T iou_threshold, sigma, score_threshold;
    int64_t method;
};

// The score of a box that is chosen already, or whose score fell below the threshold.
template <class T>
VISIONLAB_HOST_DEVICE constexpr T gone() {
    return -static_cast<T>(INFINITY);
}

template <class T>
VISIONLAB_HOST_DEVICE inline T decayed(const Box<T>& chosen, const Box<T>& box, T score,
                                       const SoftNmsSettings<T>& settings) {
    const T width = lesser_of(chosen.x2, box.x2) - greater_of(chosen.x1, box.x1);
    const T height = lesser_of(chosen.y2, box.y2) - greater_of(chosen.y1, box.y1);
    const T shared = product(width > T(0) ? width : T(0), height > T(0) ? height : T(0));
    const T ratio = shared / (chosen.area + box.area - shared);
    const T iou = ratio > T(0) ? ratio : T(0);  // NaN, of two boxes without area or of infinite area, counts as none
    T weight;
    if (settings.method == gaussian) {
        weight = exp_of_negative(-product(iou, iou) / settings.sigma);
    } else {
        weight = iou >= settings.iou_threshold ? T(1) - iou : T(1);
    }
    const T less = product(score, weight);
    return score > gone<T>() && less >= settings.score_threshold ? less : gone<T>();
}

// The least value of T that is not below the threshold: `value >= threshold` then means the same in T as in double.
template <class T>
T round_up(double threshold) {
    const T rounded = static_cast<T>(threshold);
    return static_cast<double>(rounded) < threshold ? std::nextafter(rounded, std::numeric_limits<T>::infinity())
                                                    : rounded;
}

template <class T>
SoftNmsSettings<T> soft_nms_settings(double iou_threshold, double sigma, double score_threshold, int64_t method) {
    const T width = static_cast<T>(sigma), least = std::numeric_limits<T>::min();
    return {round_up<T>(iou_threshold), width > least ? width : least, round_up<T>(score_threshold), method};
}

}  // namespace visionlab

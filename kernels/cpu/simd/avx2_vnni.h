// AVX2 with the dot products of VNNI in its own encoding: Intel's from Alder Lake on, AMD's from Zen 5 on.
#pragma once

#include "simd/avx2.h"

namespace {

struct Avx2Vnni : Avx2 {
  static constexpr bool bytes_are_as_fast = true;

  static I dot(I sum, Bytes weights, const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    const __m256i all = _mm256_set1_epi32(four);
    return {_mm256_dpbusd_avx_epi32(sum.low, weights.low, all), _mm256_dpbusd_avx_epi32(sum.high, weights.high, all)};
  }
  static I dot_nibbles(I sum, Bytes weights, const std::int8_t* x) { return dot(sum, weights, x); }
};

}  // namespace

// 16 lanes of AVX2 with FMA and F16C: two registers. Every operation gives the bits of `Portable`.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Avx2 {
  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };
  using Bytes = I;

  static constexpr int tile_groups = 1, tile_rows = 4;  // 8 of 16 registers for integer sums
  static constexpr bool bytes_are_as_fast = false;

  static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static void store(float* to, F x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
  }
  static F load_half(const std::uint16_t* from) {
    const auto* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static void store_half(std::uint16_t* to, F x) {
    auto* halves = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static F load_signed(const std::int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)))};
  }

  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F fms(F a, F b, F c) {
    return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
  }
  static F fnma(F a, F b, F c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
  }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
  }
  static F negate(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(sign, x.low), _mm256_xor_ps(sign, x.high)};
  }
  static F round(F x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, nearest), _mm256_round_ps(x.high, nearest)};
  }
  static F exp2(F x) {
    const auto power = [](__m256 exponent) {
      const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
      return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    };
    return {power(x.low), power(x.high)};
  }
  static F zero_where_below(F value, F x, float bound) {
    const __m256 limit = _mm256_set1_ps(bound);
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.low, limit, _CMP_LT_OQ), value.low),
            _mm256_andnot_ps(_mm256_cmp_ps(x.high, limit, _CMP_LT_OQ), value.high)};
  }

  static I set_integer(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
  static void store_bytes(std::int8_t* to, F x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);  // packing goes by halves of registers
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  }

  // Of each integer the bits from 16 on, or below it, as a bfloat16.
  static F upper_half(I x) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(x.low, mask)), _mm256_castsi256_ps(_mm256_and_si256(x.high, mask))};
  }
  static F lower_half(I x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.high, 16))};
  }
  static I load_integers(const std::uint8_t* from) { return load_bytes(from); }
  template <int Shift>
  static F look_up(F table, I indices) {
    const auto find = [&](__m256i words) {  // three bits of an index choose in both halves of the table, the fourth, which
      const __m256i index = _mm256_srli_epi32(words, Shift);
      const __m256 low = _mm256_permutevar8x32_ps(table.low, index), high = _mm256_permutevar8x32_ps(table.high, index);
      return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - Shift)));  // is now a sign
    };
    return {find(indices.low), find(indices.high)};
  }

  static I load_signed_integers(const std::int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
  }
  static I multiply_add(I a, I b, I c) {
    return {_mm256_add_epi32(_mm256_mullo_epi32(a.low, b.low), c.low), _mm256_add_epi32(_mm256_mullo_epi32(a.high, b.high), c.high)};
  }

  struct Multiples {
    I even, odd, zero;  // beside bytes of zeros; what -8 of them is, plus 128
  };
  static Multiples load_multiples(const std::int8_t* from) {
    const I lane = load_signed_integers(from);
    const Half low(lane.low), high(lane.high);
    return {{low.even, high.even}, {low.odd, high.odd}, {low.zero, high.zero}};
  }
  static Bytes multiplied(Bytes nibbles, const Multiples& by) {
    const auto multiply = [](__m256i values, __m256i even, __m256i odd, __m256i zero) {
      const __m256i low = _mm256_and_si256(_mm256_maddubs_epi16(values, even), _mm256_set1_epi16(255));
      return _mm256_add_epi8(_mm256_or_si256(low, _mm256_slli_epi16(_mm256_maddubs_epi16(values, odd), 8)), zero);
    };
    return {multiply(nibbles.low, by.even.low, by.odd.low, by.zero.low), multiply(nibbles.high, by.even.high, by.odd.high, by.zero.high)};
  }

  static Bytes load_bytes(const std::uint8_t* from) {
    const auto* lines = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(lines), _mm256_loadu_si256(lines + 1)};
  }
  static void store_line(std::uint8_t* to, Bytes x) {
    auto* lines = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(lines, x.low);
    _mm256_storeu_si256(lines + 1, x.high);
  }
  static __m256i low_half(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
  static __m256i high_half(__m256i x) { return low_half(_mm256_srli_epi16(x, 4)); }
  static Bytes low_nibbles(Bytes x) { return {low_half(x.low), low_half(x.high)}; }
  static Bytes high_nibbles(Bytes x) { return {high_half(x.low), high_half(x.high)}; }

  // Without VNNI, two products are added in 16 bits: exact for nibbles (at most 2 x 15 x 127), too many for bytes, whose
  // halves are therefore multiplied apart.
  static I dot_nibbles(I sum, Bytes weights, const std::int8_t* x) {
    const __m256i four = broadcast(x), ones = _mm256_set1_epi16(1);
    const auto add = [&](__m256i to, __m256i part) {
      return _mm256_add_epi32(to, _mm256_madd_epi16(_mm256_maddubs_epi16(part, four), ones));
    };
    return {add(sum.low, weights.low), add(sum.high, weights.high)};
  }
  static I dot(I sum, Bytes weights, const std::int8_t* x) {
    const __m256i four = broadcast(x), ones = _mm256_set1_epi16(1), sixteens = _mm256_set1_epi16(16);
    const auto add = [&](__m256i to, __m256i part) {
      const __m256i low = _mm256_madd_epi16(_mm256_maddubs_epi16(low_half(part), four), ones);
      const __m256i high = _mm256_madd_epi16(_mm256_maddubs_epi16(high_half(part), four), sixteens);
      return _mm256_add_epi32(to, _mm256_add_epi32(low, high));
    };
    return {add(sum.low, weights.low), add(sum.high, weights.high)};
  }

 private:
  struct Half {  // of multiples
    __m256i even, odd, zero;
    explicit Half(__m256i integers) {
      const __m256i lane = _mm256_and_si256(integers, _mm256_set1_epi32(255));
      even = _mm256_or_si256(lane, _mm256_slli_epi32(lane, 16));
      odd = _mm256_slli_epi16(even, 8);
      const __m256i both = _mm256_or_si256(even, odd), twice = _mm256_add_epi8(both, both), four = _mm256_add_epi8(twice, twice);
      zero = _mm256_sub_epi8(_mm256_set1_epi8(-128), _mm256_add_epi8(four, four));
    }
  };

  static __m256i broadcast(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
  }
};

}  // namespace

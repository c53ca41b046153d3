// 16 lanes of AVX-512 with VNNI. Every operation gives the bits of `Portable`.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Avx512Vnni {
  using F = __m512;
  using I = __m512i;
  using Bytes = __m512i;
  using Four [[gnu::may_alias, gnu::aligned(1)]] = std::int32_t;  // signed bytes, as one operand

  // 12 integer sums and their 12 float parts, of 32 registers.
  static constexpr int tile_groups = 2, tile_rows = 6;
  static constexpr bool bytes_are_as_fast = true;

  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, F x) { _mm512_storeu_ps(to, x); }
  static F load_half(const std::uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void store_half(std::uint16_t* to, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static F load_signed(const std::int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F x) { return _mm512_abs_ps(x); }
  static F negate(F x) { return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN))); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F exp2(F x) {
    const I biased = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static F zero_where_below(F value, F x, float bound) {
    const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_LT_OQ);
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(~below), value);
  }

  static I set_integer(std::int32_t x) { return _mm512_set1_epi32(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static void store_bytes(std::int8_t* to, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
  }

  // Of each integer the bits from 16 on, or below it, as a bfloat16.
  static F upper_half(I x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))); }
  static F lower_half(I x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
  static I load_integers(const std::uint8_t* from) { return _mm512_loadu_si512(from); }
  template <int Shift>
  static F look_up(F table, I indices) {  // what is above the four bits of an index is not looked at
    return _mm512_permutexvar_ps(_mm512_srli_epi32(indices, Shift), table);
  }

  static I load_signed_integers(const std::int8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static I multiply_add(I a, I b, I c) { return _mm512_add_epi32(_mm512_mullo_epi32(a, b), c); }

  struct Multiples {
    I even, odd, zero;  // beside bytes of zeros; what -8 of them is, plus 128
  };
  static Multiples load_multiples(const std::int8_t* from) {
    const I lane = _mm512_and_si512(load_signed_integers(from), _mm512_set1_epi32(255));
    const I even = _mm512_or_si512(lane, _mm512_slli_epi32(lane, 16)), odd = _mm512_slli_epi16(even, 8), both = _mm512_or_si512(even, odd);
    const I twice = _mm512_add_epi8(both, both), four = _mm512_add_epi8(twice, twice), eight = _mm512_add_epi8(four, four);
    return {even, odd, _mm512_sub_epi8(_mm512_set1_epi8(-128), eight)};
  }
  static Bytes multiplied(Bytes nibbles, const Multiples& by) {
    const I even = _mm512_maddubs_epi16(nibbles, by.even), odd = _mm512_slli_epi16(_mm512_maddubs_epi16(nibbles, by.odd), 8);
    return _mm512_add_epi8(_mm512_mask_mov_epi8(odd, 0x5555555555555555u, even), by.zero);
  }

  static Bytes load_bytes(const std::uint8_t* from) { return _mm512_loadu_si512(from); }
  static void store_line(std::uint8_t* to, Bytes x) { _mm512_storeu_si512(to, x); }
  static Bytes low_nibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
  static Bytes high_nibbles(Bytes x) {
    return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
  }
  // Written out, because GCC 12 copies the sums to and fro around the intrinsic: products of many rows take a quarter longer.
  static I dot(I sum, Bytes weights, const std::int8_t* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*reinterpret_cast<const Four*>(x)));
    return sum;
  }
  static I dot_nibbles(I sum, Bytes weights, const std::int8_t* x) { return dot(sum, weights, x); }
};

}  // namespace

// AVX-512 with VNNI, and the matrix unit of Intel's AMX for rounds of many rows.
//
// The instructions are written out: not every compiler that can assemble them has their intrinsics, and some of those do not
// say that memory is read. Shapes and operands: Intel's manual, volume 2, TDPBSSD and LDTILECFG.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/avx512_bf16.h"

namespace {

struct AmxUnit {
  // A shape for each of the eight registers; what is not named has none.
  struct alignas(64) Shapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    constexpr void set(int tile, int count, int bytes) {
      rows[tile] = static_cast<std::uint8_t>(count);
      row_bytes[tile] = static_cast<std::uint16_t>(bytes);
    }
  };
  static_assert(sizeof(Shapes) == 64);

  static void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
  // Between what is stored for the unit and its loads, and between its stores and what is loaded: the compiler knows of neither.
  static void finish() { asm volatile("" : : : "memory"); }
  static void release() { asm volatile("tilerelease"); }

  template <int Tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  template <int Tile>
  static void load(const void* from, std::ptrdiff_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile));
  }
  template <int Tile>
  static void store(void* to, std::ptrdiff_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile));
  }
  // Sums [rows][16] += activations [rows][4 n] x weights [n][16][4].
  template <int Sums, int Activations, int Weights>
  static void dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Activations), "i"(Weights));
  }
};

#if !defined(SALMONRUN_MATRIX_UNIT)  // a test puts one in software in its place
#define SALMONRUN_MATRIX_UNIT AmxUnit
#endif

struct Amx : Avx512Bf16 {
  using Unit = SALMONRUN_MATRIX_UNIT;

  static I load_sums(const std::int32_t* from) { return _mm512_load_si512(from); }
  // Bytes less a zero point.
  static void store_signed(std::int8_t* to, Bytes x, int zero_point) {
    _mm512_storeu_si512(to, _mm512_sub_epi8(x, _mm512_set1_epi8(static_cast<char>(zero_point))));
  }
};

}  // namespace

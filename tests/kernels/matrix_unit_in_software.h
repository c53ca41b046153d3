// What Intel's manual says of AMX's registers and of TDPBSSD, in plain C++, in place of the unit that this processor may not have:
// compiled in front of isa/amx.cpp. What the unit would refuse with an exception ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

inline void demand(bool holds, const char* what) {
  if (holds) return;
  std::printf("the unit refuses: %s\n", what);
  std::exit(2);
}

struct alignas(64) UnitShapes {  // as LDTILECFG reads it
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, int count, int bytes) {
    rows[tile] = static_cast<std::uint8_t>(count);
    row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  }
};

struct SoftwareUnit {
  using Shapes = UnitShapes;

  static void configure(const Shapes& shapes) {
    for (int tile = 0; tile < 16; ++tile) {
      demand(tile < 8 || (!shapes.rows[tile] && !shapes.row_bytes[tile]), "a ninth register");
      demand(shapes.rows[tile] <= 16 && shapes.row_bytes[tile] <= 64, "more than 16 rows of 64 bytes");
      demand(!shapes.rows[tile] == !shapes.row_bytes[tile], "rows without bytes, or bytes without rows");
    }
    shapes_ = shapes;
    configured_ = true;
    std::memset(tiles_, 0, sizeof tiles_);
  }
  static void finish() {}
  static void release() { configured_ = false; }

  template <int Tile>
  static void zero() {
    used<Tile>();
    std::memset(tiles_[Tile], 0, sizeof tiles_[Tile]);
  }
  template <int Tile>
  static void load(const void* from, std::ptrdiff_t stride) {
    used<Tile>();
    std::memset(tiles_[Tile], 0, sizeof tiles_[Tile]);
    for (int row = 0; row < shapes_.rows[Tile]; ++row)
      std::memcpy(tiles_[Tile][row], static_cast<const std::uint8_t*>(from) + row * stride, shapes_.row_bytes[Tile]);
  }
  template <int Tile>
  static void store(void* to, std::ptrdiff_t stride) {
    used<Tile>();
    for (int row = 0; row < shapes_.rows[Tile]; ++row)
      std::memcpy(static_cast<std::uint8_t*>(to) + row * stride, tiles_[Tile][row], shapes_.row_bytes[Tile]);
  }
  template <int Sums, int Activations, int Weights>
  static void dot() {
    used<Sums>(), used<Activations>(), used<Weights>();
    static_assert(Sums != Activations && Sums != Weights && Activations != Weights);
    demand(shapes_.rows[Sums] == shapes_.rows[Activations], "sums of another number of rows than the first operand");
    demand(shapes_.row_bytes[Sums] == shapes_.row_bytes[Weights], "sums of another width than the second operand");
    demand(shapes_.row_bytes[Activations] == 4 * shapes_.rows[Weights], "operands that do not fit each other");
    demand(shapes_.row_bytes[Sums] % 4 == 0, "parts of sums");
    for (int m = 0; m < shapes_.rows[Sums]; ++m)
      for (int k = 0; k < shapes_.rows[Weights]; ++k)
        for (int n = 0; n < shapes_.row_bytes[Sums] / 4; ++n) {
          std::int32_t sum;
          std::memcpy(&sum, tiles_[Sums][m] + 4 * n, 4);
          for (int i = 0; i < 4; ++i)
            sum += static_cast<std::int8_t>(tiles_[Activations][m][4 * k + i]) * static_cast<std::int8_t>(tiles_[Weights][k][4 * n + i]);
          std::memcpy(tiles_[Sums][m] + 4 * n, &sum, 4);
        }
  }

 private:
  template <int Tile>
  static void used() {
    static_assert(Tile >= 0 && Tile < 8);
    demand(configured_ && shapes_.rows[Tile] > 0, "a register without a shape");
  }

  static inline thread_local Shapes shapes_;
  static inline thread_local bool configured_ = false;
  static inline thread_local std::uint8_t tiles_[8][16][64];
};

}  // namespace

#define SALMONRUN_MATRIX_UNIT SoftwareUnit

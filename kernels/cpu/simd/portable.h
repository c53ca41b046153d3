// 16 lanes in plain C++: what every processor can do, and what the others must equal to the bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace {

struct Portable {
  static constexpr int tile_groups = 2, tile_rows = 6;
  static constexpr bool bytes_are_as_fast = true;  // as nibbles, in a dot product

  struct F {
    float lane[16];
  };
  struct I {
    std::int32_t lane[16];
  };
  struct Bytes {
    std::uint8_t byte[64];
  };

  template <class Make>
  static F make(Make value) {
    F out;
    for (int i = 0; i < 16; ++i) out.lane[i] = value(i);
    return out;
  }

  static F set(float x) {
    return make([&](int) { return x; });
  }
  static F load(const float* from) {
    F out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
  }
  static void store(float* to, F x) { std::memcpy(to, x.lane, sizeof x.lane); }
  static F load_half(const std::uint16_t* from) {
    return make([&](int i) { return half_to_float(from[i]); });
  }
  static void store_half(std::uint16_t* to, F x) {
    for (int i = 0; i < 16; ++i) to[i] = float_to_half(x.lane[i]);
  }
  static F load_signed(const std::int8_t* from) {
    return make([&](int i) { return static_cast<float>(from[i]); });
  }

  static F add(F a, F b) {
    return make([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F mul(F a, F b) {
    return make([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(F a, F b) {
    return make([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // a * b + c and a * b - c, rounded once.
  static F fma(F a, F b, F c) {
    return make([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static F fms(F a, F b, F c) {
    return make([&](int i) { return std::fma(a.lane[i], b.lane[i], -c.lane[i]); });
  }
  // c - a * b, rounded once.
  static F fnma(F a, F b, F c) {
    return make([&](int i) { return std::fma(-a.lane[i], b.lane[i], c.lane[i]); });
  }
  // The second where one is not a number.
  static F max(F a, F b) {
    return make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(F a, F b) {
    return make([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F abs(F x) {
    return make([&](int i) { return std::fabs(x.lane[i]); });
  }
  static F negate(F x) {
    return make([&](int i) { return -x.lane[i]; });
  }
  // To the nearest integer, halves to even.
  static F round(F x) {
    return make([&](int i) { return std::nearbyint(x.lane[i]); });
  }
  // 2 to the power of integers from -126 to 127.
  static F exp2(F x) {
    return make([&](int i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(x.lane[i]) + 127) << 23;
      float out;
      std::memcpy(&out, &bits, sizeof out);
      return out;
    });
  }
  static F zero_where_below(F value, F x, float bound) {
    return make([&](int i) { return x.lane[i] < bound ? 0.0f : value.lane[i]; });
  }

  static I set_integer(std::int32_t x) {
    I out;
    for (int i = 0; i < 16; ++i) out.lane[i] = x;
    return out;
  }
  static F to_float(I x) {
    return make([&](int i) { return static_cast<float>(x.lane[i]); });
  }
  // Integers from -127 to 127, as 16 bytes.
  static void store_bytes(std::int8_t* to, F x) {
    for (int i = 0; i < 16; ++i) to[i] = static_cast<std::int8_t>(x.lane[i]);
  }

  // Of each integer the bits from 16 on, or below it, as a bfloat16.
  static F upper_half(I x) { return from_bits(x, [](std::uint32_t bits) { return bits & 0xffff0000u; }); }
  static F lower_half(I x) { return from_bits(x, [](std::uint32_t bits) { return bits << 16; }); }

  template <class Half>
  static F from_bits(I x, Half half) {
    return make([&](int i) {
      const std::uint32_t bits = half(static_cast<std::uint32_t>(x.lane[i]));
      float out;
      std::memcpy(&out, &bits, sizeof out);
      return out;
    });
  }
  static I load_integers(const std::uint8_t* from) {
    I out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
  }
  // The value of each lane whose index begins at bit Shift.
  template <int Shift>
  static F look_up(F table, I indices) {
    return make([&](int i) { return table.lane[static_cast<std::uint32_t>(indices.lane[i]) >> Shift & 15]; });
  }

  static I load_signed_integers(const std::int8_t* from) {
    I out;
    for (int i = 0; i < 16; ++i) out.lane[i] = from[i];
    return out;
  }
  // a * b + c, of integers.
  static I multiply_add(I a, I b, I c) {
    for (int i = 0; i < 16; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }

  // What the nibbles of each lane are to be multiplied with.
  using Multiples = I;
  static Multiples load_multiples(const std::int8_t* from) { return load_signed_integers(from); }
  // Nibbles, less 8, times multiples, plus 128, as bytes.
  static Bytes multiplied(Bytes nibbles, const Multiples& by) {
    for (int i = 0; i < 64; ++i)
      nibbles.byte[i] = static_cast<std::uint8_t>((nibbles.byte[i] - 8) * by.lane[i / 4] + 128);
    return nibbles;
  }

  static Bytes load_bytes(const std::uint8_t* from) {
    Bytes out;
    std::memcpy(out.byte, from, sizeof out.byte);
    return out;
  }
  static void store_line(std::uint8_t* to, Bytes x) { std::memcpy(to, x.byte, sizeof x.byte); }
  static Bytes low_nibbles(Bytes x) {
    for (auto& byte : x.byte) byte &= 15;
    return x;
  }
  static Bytes high_nibbles(Bytes x) {
    for (auto& byte : x.byte) byte >>= 4;
    return x;
  }
  // sum + the 4 products of each lane's bytes with the same 4 signed ones.
  static I dot(I sum, Bytes weights, const std::int8_t* x) {
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 4; ++k) sum.lane[i] += weights.byte[4 * i + k] * x[k];
    return sum;
  }
  // The same, of weights below 16.
  static I dot_nibbles(I sum, Bytes weights, const std::int8_t* x) { return dot(sum, weights, x); }
};

}  // namespace

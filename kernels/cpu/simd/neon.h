// 16 lanes of NEON with dot products (Armv8.2): four registers. Every operation gives the bits of `Portable`.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

struct Neon {
  struct F {
    float32x4_t part[4];
  };
  struct I {
    int32x4_t part[4];
  };
  using Bytes = uint8x16x4_t;

  static constexpr int tile_groups = 1, tile_rows = 4;  // 16 of 32 registers for integer sums
  static constexpr bool bytes_are_as_fast = false;

  template <class Make>
  static F make(Make value) {
    F out;
    for (int i = 0; i < 4; ++i) out.part[i] = value(i);
    return out;
  }

  static F set(float x) {
    return make([&](int) { return vdupq_n_f32(x); });
  }
  static F load(const float* from) {
    return make([&](int i) { return vld1q_f32(from + 4 * i); });
  }
  static void store(float* to, F x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, x.part[i]);
  }
  static F load_half(const std::uint16_t* from) {
    return make([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))); });
  }
  static void store_half(std::uint16_t* to, F x) {
    for (int i = 0; i < 4; ++i) vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.part[i])));
  }
  static F load_signed(const std::int8_t* from) {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t words[] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
    return make([&](int i) {
      const int16x8_t half = words[i / 2];
      return vcvtq_f32_s32(vmovl_s16(i % 2 ? vget_high_s16(half) : vget_low_s16(half)));
    });
  }

  static F add(F a, F b) {
    return make([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
  }
  static F mul(F a, F b) {
    return make([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
  }
  static F div(F a, F b) {
    return make([&](int i) { return vdivq_f32(a.part[i], b.part[i]); });
  }
  static F fma(F a, F b, F c) {
    return make([&](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
  }
  static F fms(F a, F b, F c) {
    return make([&](int i) { return vfmaq_f32(vnegq_f32(c.part[i]), a.part[i], b.part[i]); });
  }
  static F fnma(F a, F b, F c) {
    return make([&](int i) { return vfmsq_f32(c.part[i], a.part[i], b.part[i]); });
  }
  static F max(F a, F b) {  // vmaxq would give what is not a number, whichever it is
    return make([&](int i) { return vbslq_f32(vcgtq_f32(a.part[i], b.part[i]), a.part[i], b.part[i]); });
  }
  static F min(F a, F b) {
    return make([&](int i) { return vbslq_f32(vcltq_f32(a.part[i], b.part[i]), a.part[i], b.part[i]); });
  }
  static F abs(F x) {
    return make([&](int i) { return vabsq_f32(x.part[i]); });
  }
  static F negate(F x) {
    return make([&](int i) { return vnegq_f32(x.part[i]); });
  }
  static F round(F x) {
    return make([&](int i) { return vrndnq_f32(x.part[i]); });
  }
  static F exp2(F x) {
    return make([&](int i) {
      const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(x.part[i]), vdupq_n_s32(127));
      return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    });
  }
  static F zero_where_below(F value, F x, float bound) {
    return make([&](int i) {
      const uint32x4_t below = vcltq_f32(x.part[i], vdupq_n_f32(bound));
      return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value.part[i]), below));
    });
  }

  static I set_integer(std::int32_t x) {
    const int32x4_t all = vdupq_n_s32(x);
    return {{all, all, all, all}};
  }
  static F to_float(I x) {
    return make([&](int i) { return vcvtq_f32_s32(x.part[i]); });
  }
  static void store_bytes(std::int8_t* to, F x) {
    const auto words = [&](int i) {
      return vcombine_s16(vmovn_s32(vcvtq_s32_f32(x.part[i])), vmovn_s32(vcvtq_s32_f32(x.part[i + 1])));
    };
    vst1q_s8(to, vcombine_s8(vmovn_s16(words(0)), vmovn_s16(words(2))));
  }

  // Of each integer the bits from 16 on, or below it, as a bfloat16.
  static F upper_half(I x) {
    const uint32x4_t mask = vdupq_n_u32(0xffff0000u);
    return make([&](int i) { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s32(x.part[i]), mask)); });
  }
  static F lower_half(I x) {
    return make([&](int i) { return vreinterpretq_f32_s32(vshlq_n_s32(x.part[i], 16)); });
  }
  static I load_integers(const std::uint8_t* from) {
    const Bytes bytes = load_bytes(from);
    I out;
    for (int i = 0; i < 4; ++i) out.part[i] = vreinterpretq_s32_u8(bytes.val[i]);
    return out;
  }
  template <int Shift>
  static F look_up(F table, I indices) {
    uint8x16x4_t bytes;
    for (int i = 0; i < 4; ++i) bytes.val[i] = vreinterpretq_u8_f32(table.part[i]);
    return make([&](int i) {
      uint32x4_t index = vreinterpretq_u32_s32(indices.part[i]);
      if constexpr (Shift > 0) index = vshrq_n_u32(index, Shift);
      // The four bytes of a value: 4 x index, and 0 to 3.
      const uint32x4_t places = vmlaq_n_u32(vdupq_n_u32(0x03020100), vandq_u32(index, vdupq_n_u32(15)), 0x04040404);
      return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(places)));
    });
  }

  static I load_signed_integers(const std::int8_t* from) {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))}};
  }
  static I multiply_add(I a, I b, I c) {
    for (int i = 0; i < 4; ++i) c.part[i] = vmlaq_s32(c.part[i], a.part[i], b.part[i]);
    return c;
  }

  using Multiples = Bytes;  // each four times
  static Multiples load_multiples(const std::int8_t* from) {
    const uint8x16_t once = vreinterpretq_u8_s8(vld1q_s8(from));
    const uint8x16x2_t twice = {{vzip1q_u8(once, once), vzip2q_u8(once, once)}};
    return {{vzip1q_u8(twice.val[0], twice.val[0]), vzip2q_u8(twice.val[0], twice.val[0]), vzip1q_u8(twice.val[1], twice.val[1]),
             vzip2q_u8(twice.val[1], twice.val[1])}};
  }
  static Bytes multiplied(Bytes nibbles, const Multiples& by) {
    for (int i = 0; i < 4; ++i)
      nibbles.val[i] = vmlaq_u8(vdupq_n_u8(128), vsubq_u8(nibbles.val[i], vdupq_n_u8(8)), by.val[i]);
    return nibbles;
  }

  static Bytes load_bytes(const std::uint8_t* from) { return vld1q_u8_x4(from); }
  static void store_line(std::uint8_t* to, Bytes x) { vst1q_u8_x4(to, x); }
  static Bytes low_nibbles(Bytes x) {
    for (auto& part : x.val) part = vandq_u8(part, vdupq_n_u8(15));
    return x;
  }
  static Bytes high_nibbles(Bytes x) {
    for (auto& part : x.val) part = vshrq_n_u8(part, 4);
    return x;
  }

  // Its products are of signed bytes, as which nibbles fit. Of bytes 128 is taken, and given back as 2 x 64 activations.
  static I dot_nibbles(I sum, Bytes weights, const std::int8_t* x) {
    const int8x16_t four = broadcast(x);
    for (int i = 0; i < 4; ++i) sum.part[i] = vdotq_s32(sum.part[i], vreinterpretq_s8_u8(weights.val[i]), four);
    return sum;
  }
  static I dot(I sum, Bytes weights, const std::int8_t* x) {
    const int8x16_t four = broadcast(x), half = vdupq_n_s8(64);
    const int32x4_t taken = vdotq_s32(vdotq_s32(vdupq_n_s32(0), half, four), half, four);
    for (int i = 0; i < 4; ++i) {
      const int8x16_t centred = vreinterpretq_s8_u8(veorq_u8(weights.val[i], vdupq_n_u8(128)));
      sum.part[i] = vdotq_s32(vaddq_s32(sum.part[i], taken), centred, four);
    }
    return sum;
  }

 private:
  static int8x16_t broadcast(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
};

}  // namespace

// AVX-512 with dot products of bytes (VNNI) and of bfloat16: Intel's from Cooper Lake on, AMD's from Zen 4 on.
#pragma once

#include "simd/avx512_vnni.h"

namespace {

struct Avx512Bf16 : Avx512Vnni {
  using Pair [[gnu::may_alias, gnu::aligned(1)]] = std::int32_t;  // two bfloat16, as one operand

  // Written out for the reason that Avx512Vnni::dot is, and because not every compiler has the intrinsic.
  static F dot_brain_floats(F sum, I weights, const std::uint16_t* x) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*reinterpret_cast<const Pair*>(x)));
    return sum;
  }
};

}  // namespace

// Products of rows of bfloat16 with a matrix of bfloat16, for any instruction set V.
//
// A tile is R groups of 16 outputs by T rows. Its order of float operations, for every output, whatever R and T, is that of
// the processors' own instruction (Intel's manual, volume 2, VDPBF16PS), pair after pair of neighbouring inputs:
//   out = 0; for each pair: out = fma(weight 1, input 1, out);  out = fma(weight 0, input 0, out)
// The instruction takes sums below 2 ** -126 for zero. None comes about but by chance in 2 ** 66: what is stored as bfloat16
// is zero below 2 ** -60.
#pragma once

#include <cstring>

#include "operations.h"
#include "operations/store.h"

namespace {

using namespace salmonrun;

constexpr std::uint32_t smallest_brain_float = 0x21800000;  // 2 ** -60

// Rounded to nearest, halves to even.
inline std::uint16_t to_brain_float(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t size = bits & 0x7fffffff;
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const std::uint32_t number = size > 0x7f800000 ? (bits >> 16 | 0x40) : rounded;  // what is no number stays none
  return static_cast<std::uint16_t>(size < smallest_brain_float ? bits >> 16 & 0x8000 : number);
}

inline void to_brain_floats(const float* x, std::uint16_t* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = to_brain_float(x[i]);
}

inline float from_brain_float(std::uint16_t x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Two inputs of 16 outputs.
template <class V>
inline typename V::F add_pair(typename V::F sum, typename V::I weights, const std::uint16_t* x) {
  if constexpr (requires { V::dot_brain_floats(sum, weights, x); }) {
    return V::dot_brain_floats(sum, weights, x);
  } else {
    sum = V::fma(V::upper_half(weights), V::set(from_brain_float(x[1])), sum);
    return V::fma(V::lower_half(weights), V::set(from_brain_float(x[0])), sum);
  }
}

// `packed` is where the tile's first group begins.
template <class V, int R, int T>
void brain_float_tile(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& rows, int row, int group,
                      float* out, std::ptrdiff_t stride, bool add) {
  const std::uint8_t* weights[R];
  for (int r = 0; r < R; ++r) weights[r] = packed + r * m.group_bytes();
  const std::uint16_t* x[T];
  for (int t = 0; t < T; ++t) x[t] = reinterpret_cast<const std::uint16_t*>(rows.values + (row + t) * rows.value_stride);
  typename V::F sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::set(0.0f);
  for (int input = 0; input < m.columns; input += 2) {
    typename V::I line[R];
    for (int r = 0; r < R; ++r) line[r] = V::load_integers(weights[r] + input * 32);
    for (int t = 0; t < T; ++t)
      for (int r = 0; r < R; ++r) sum[r][t] = add_pair<V>(sum[r][t], line[r], x[t] + input);
  }
// Else GCC 12 keeps the sums in memory, from which this loop would take them one by one.
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) store_output<V>(m, sum[r][t], group + r, out + (row + t) * stride, add);
}

}  // namespace

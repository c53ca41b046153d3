// Products of quantized rows with a matrix of super-blocks, for any instruction set V: int4, whose blocks of 32 inputs have
// whole multiples of a scale that 128 of them share.
//
// A tile is R groups of 16 outputs by T rows. Values times multiples are signed bytes, so their sums over a super-block are integers,
// exactly those of a matrix of 8 bits in blocks of 128; so is the order of its float operations, for every output:
//   out = 0; for each super-block: out = fma(integer sum * weight scale, activation scale, out)
#pragma once

#include "operations.h"
#include "operations/store.h"
#include "operations/sums.h"

namespace {

using namespace salmonrun;

// `packed` is where the tile's first group begins.
template <class V, int R, int T>
void super_tile(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int row, int group, float* out,
                std::ptrdiff_t stride, bool add) {
  using F = typename V::F;
  using I = typename V::I;
  const std::uint8_t* weights[R];
  const std::int8_t* multiples[R];
  for (int r = 0; r < R; ++r) {
    weights[r] = packed + r * m.group_bytes();
    multiples[r] = m.multiples + std::ptrdiff_t{group + r} * m.starts() * lanes;
  }
  const std::int8_t* values[T];
  const std::int32_t* starts[T];
  for (int t = 0; t < T; ++t) {
    values[t] = x.values + (row + t) * x.value_stride;
    starts[t] = x.starts + (row + t) * x.start_stride;
  }
  F sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::set(0.0f);
  for (int block = 0; block < m.blocks(); ++block) {
    I whole[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) whole[r][t] = V::set_integer(0);
    for (int i = 0; i < m.block_inputs(block); i += multiple_block) {
      I part[R][T];
      for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) part[r][t] = V::set_integer(*starts[t]);
      sum_block<V, R, T, 4>(weights, values, multiple_block, part);
      for (int r = 0; r < R; ++r) {
        const I multiple = V::load_signed_integers(multiples[r]);
        for (int t = 0; t < T; ++t) whole[r][t] = V::multiply_add(part[r][t], multiple, whole[r][t]);
        weights[r] += multiple_block * lanes / 2, multiples[r] += lanes;
      }
      for (int t = 0; t < T; ++t) values[t] += multiple_block, ++starts[t];
    }
    for (int r = 0; r < R; ++r) {
      const F scale = V::load_half(m.scales + (std::ptrdiff_t{group + r} * m.blocks() + block) * lanes);
      for (int t = 0; t < T; ++t)
        sum[r][t] = V::fma(V::mul(V::to_float(whole[r][t]), scale), V::set(x.scales[(row + t) * x.scale_stride + block]), sum[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) store_output<V>(m, sum[r][t], group + r, out + (row + t) * stride, add);
}

}  // namespace

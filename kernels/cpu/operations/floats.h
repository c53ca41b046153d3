// Products of rows of floats with a matrix of floats, for any instruction set V.
//
// A tile is R groups of 16 outputs by T rows. Its order of float operations, for every output, whatever R and T:
//   out = 0; for each input: out = fma(weight, input, out)
#pragma once

#include "operations.h"
#include "operations/store.h"

namespace {

using namespace salmonrun;

// `packed` is where the tile's first group begins.
template <class V, int R, int T>
void float_tile(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& rows, int row, int group, float* out,
                std::ptrdiff_t stride, bool add) {
  using F = typename V::F;
  const float* weights[R];
  for (int r = 0; r < R; ++r) weights[r] = reinterpret_cast<const float*>(packed + r * m.group_bytes());
  const float* x[T];
  for (int t = 0; t < T; ++t) x[t] = rows.floats + (row + t) * rows.float_stride;
  F sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::set(0.0f);
  for (int input = 0; input < m.columns; ++input) {
    F weight[R];
    for (int r = 0; r < R; ++r) weight[r] = V::load(weights[r] + std::ptrdiff_t{input} * lanes);
    for (int t = 0; t < T; ++t) {
      const F y = V::set(x[t][input]);
      for (int r = 0; r < R; ++r) sum[r][t] = V::fma(weight[r], y, sum[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) store_output<V>(m, sum[r][t], group + r, out + (row + t) * stride, add);
}

}  // namespace

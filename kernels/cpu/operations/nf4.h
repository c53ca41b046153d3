// Products of rows of floats with a matrix of nf4, for any instruction set V.
//
// A tile is R groups of 16 outputs by T rows. Its order of float operations, for every output, whatever R and T:
//   out = 0; for each block: part = 0; for each input of it: part = fma(table[index], input, part);  out = fma(part, scale, out)
#pragma once

#include "operations.h"
#include "operations/store.h"

namespace {

using namespace salmonrun;

// Input Place of the 8 whose indices each lane of a line has.
template <class V, int R, int T, int Place>
inline void add_input(typename V::F table, const typename V::I (&line)[R], const float* const* x, int input,
                      typename V::F (&part)[R][T]) {
  typename V::F value[R];
  for (int r = 0; r < R; ++r) value[r] = V::template look_up<4 * Place>(table, line[r]);
  for (int t = 0; t < T; ++t) {
    const typename V::F y = V::set(x[t][input]);
    for (int r = 0; r < R; ++r) part[r][t] = V::fma(value[r], y, part[r][t]);
  }
}

// 16 inputs: those in the low (Half 0) or the high (1) halves of the bytes of four lines.
template <class V, int R, int T, int Half>
inline void add_inputs(typename V::F table, const std::uint8_t* const* weights, const float* const* x, int input,
                       typename V::F (&part)[R][T]) {
  for (int i = 0; i < 4; ++i) {
    typename V::I line[R];
    for (int r = 0; r < R; ++r) line[r] = V::load_integers(weights[r] + input * 8 + i * 64);
    const int first = input + 16 * Half + 4 * i;
    add_input<V, R, T, Half>(table, line, x, first, part);
    add_input<V, R, T, Half + 2>(table, line, x, first + 1, part);
    add_input<V, R, T, Half + 4>(table, line, x, first + 2, part);
    add_input<V, R, T, Half + 6>(table, line, x, first + 3, part);
  }
}

// `packed` is where the tile's first group begins.
template <class V, int R, int T>
void nf4_tile(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& rows, int row, int group, float* out,
              std::ptrdiff_t stride, bool add) {
  using F = typename V::F;
  const F table = V::load(nf4_values);
  const std::uint8_t* weights[R];
  for (int r = 0; r < R; ++r) weights[r] = packed + r * m.group_bytes();
  const float* x[T];
  for (int t = 0; t < T; ++t) x[t] = rows.floats + (row + t) * rows.float_stride;
  F sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::set(0.0f);
  for (int block = 0; block < m.blocks(); ++block) {
    F part[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) part[r][t] = V::set(0.0f);
    for (int input = block * m.block; input < (block + 1) * m.block; input += 32) {
      add_inputs<V, R, T, 0>(table, weights, x, input, part);
      add_inputs<V, R, T, 1>(table, weights, x, input, part);
    }
    for (int r = 0; r < R; ++r) {
      const F scale = V::load(m.nf4_scales + (std::ptrdiff_t{group + r} * m.blocks() + block) * lanes);
      for (int t = 0; t < T; ++t) sum[r][t] = V::fma(part[r][t], scale, sum[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) store_output<V>(m, sum[r][t], group + r, out + (row + t) * stride, add);
}

}  // namespace

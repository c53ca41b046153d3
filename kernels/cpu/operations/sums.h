// Integer sums of products, for any instruction set V.
#pragma once

#include "operations.h"

namespace {

using namespace salmonrun;

// The integer sums of one block: acc[r][t] += weights x activations.
template <class V, int R, int T, int Bits>
inline void sum_block(const std::uint8_t* const* weights, const std::int8_t* const* x, int block,
                      typename V::I (&acc)[R][T]) {
  if constexpr (Bits == 8) {  // a line has 4 inputs of each output
    for (int i = 0; i < block; i += 4) {
      typename V::Bytes bytes[R];
      for (int r = 0; r < R; ++r) bytes[r] = V::load_bytes(weights[r] + i * lanes);
      for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) acc[r][t] = V::dot(acc[r][t], bytes[r], x[t] + i);
    }
  } else {  // two times 4, 16 inputs apart
    for (int i = 0; i < block; i += 32)
      for (int line = 0; line < Bits; ++line) {
        typename V::Bytes bytes[R], low[R], high[R];
        for (int r = 0; r < R; ++r) bytes[r] = V::load_bytes(weights[r] + i * 2 * Bits + line * 64);
        for (int r = 0; r < R; ++r) low[r] = V::low_nibbles(bytes[r]), high[r] = V::high_nibbles(bytes[r]);
        for (int t = 0; t < T; ++t) {
          for (int r = 0; r < R; ++r) acc[r][t] = V::dot_nibbles(acc[r][t], low[r], x[t] + i + 4 * line);
          for (int r = 0; r < R; ++r) acc[r][t] = V::dot_nibbles(acc[r][t], high[r], x[t] + i + 4 * line + 16);
        }
      }
  }
}

// Where the sum of a block begins, of a row's `starts`. Of a super-block whose values times multiples were unpacked as bytes, the
// zero point is 128: 16 times that of the nibbles, for which the starts are.
inline std::int32_t start_of(const MatrixView& m, const std::int32_t* starts, int block) {
  if (!m.multiples) return starts[block];
  std::int32_t sum = 0;
  const std::int32_t* own = starts + block * (m.block / multiple_block);
  for (int i = 0; i < m.block_inputs(block) / multiple_block; ++i) sum += own[i];
  return 16 * sum;
}

}  // namespace

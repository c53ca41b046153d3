// Nibbles as bytes, in the order of 8-bit lines, for any instruction set V.
#pragma once

#include "operations.h"

namespace {

using namespace salmonrun;

// Of `count` groups from `group` on: store(where the line is, its bytes) for each line of 4 inputs. With multiples, bytes are
// values times multiples, whose zero point is 128.
template <class V, class Store>
void unpack_lines(const MatrixView& m, int group, int count, Store&& store) {
  const std::uint8_t* packed = m.packed + group * m.group_bytes();
  const std::ptrdiff_t blocks = std::ptrdiff_t{count} * m.columns / 32;
  if (!m.multiples) {
    for (std::ptrdiff_t at = 0; at < blocks * 512; at += 512, packed += 256)
      for (int line = 0; line < 256; line += 64) {
        const typename V::Bytes bytes = V::load_bytes(packed + line);
        store(at + line, V::low_nibbles(bytes));
        store(at + line + 256, V::high_nibbles(bytes));
      }
    return;
  }
  const std::int8_t* multiples = m.multiples + std::ptrdiff_t{group} * m.starts() * lanes;
  for (std::ptrdiff_t at = 0; at < blocks * 512; at += 512, packed += 256, multiples += lanes) {
    const typename V::Multiples multiple = V::load_multiples(multiples);
    for (int line = 0; line < 256; line += 64) {
      const typename V::Bytes bytes = V::load_bytes(packed + line);
      store(at + line, V::multiplied(V::low_nibbles(bytes), multiple));
      store(at + line + 256, V::multiplied(V::high_nibbles(bytes), multiple));
    }
  }
}

}  // namespace

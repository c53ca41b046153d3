// The last step of every product: bias, and the outputs of a group to where they belong, for any instruction set V.
#pragma once

#include "operations.h"

namespace {

using namespace salmonrun;

// `out` is where the row begins.
template <class V>
inline void store_output(const MatrixView& m, typename V::F x, int group, float* out, bool add) {
  const int output = group * lanes, count = m.rows - output;
  float* to = out + output;
  if (m.bias) x = V::add(x, V::load(m.bias + output));
  if (count >= lanes) {
    V::store(to, add ? V::add(V::load(to), x) : x);
    return;
  }
  float lane[lanes];  // the last group of a matrix may have fewer outputs
  V::store(lane, x);
  for (int i = 0; i < count; ++i) to[i] = add ? to[i] + lane[i] : lane[i];
}

}  // namespace

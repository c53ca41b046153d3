// What a mixture of experts needs beside products: its router, and the weighted sum of what experts say, for any V.
#pragma once

#include "operations/attention.h"

namespace {

using namespace salmonrun;

// R rows at once, whose sums do not wait for each other.
template <class V, int R>
void dot_some(const float* x, const float* rows, std::ptrdiff_t stride, int n, float* out) {
  typename V::F sum[R];
  for (int r = 0; r < R; ++r) sum[r] = V::set(0.0f);
  for (int i = 0; i < n; i += lanes) {
    const typename V::F part = V::load(x + i);
    for (int r = 0; r < R; ++r) sum[r] = V::fma(part, V::load(rows + r * stride + i), sum[r]);
  }
  for (int r = 0; r < R; ++r) out[r] = sum_lanes<V>(sum[r]);
}

template <class V>
void dot_rows(const float* x, const float* rows, std::ptrdiff_t stride, int count, int n, float* out) {
  int row = 0;
  for (; row + 4 <= count; row += 4) dot_some<V, 4>(x, rows + row * stride, stride, n, out + row);
  for (; row < count; ++row) dot_some<V, 1>(x, rows + row * stride, stride, n, out + row);
}

template <class V>
void softmax_row(float* scores, int n) {
  const typename V::F total = V::set(softmax<V>(scores, 0, n - 1));
  for (int i = 0; i < n; i += lanes) V::store(scores + i, V::div(V::load(scores + i), total));
}

template <class V>
void add_scaled_row(float* out, const float* x, float factor, int n) {
  for (int i = 0; i < n; i += lanes) V::store(out + i, V::fma(V::load(x + i), V::set(factor), V::load(out + i)));
}

}  // namespace

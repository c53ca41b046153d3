// Norms, rotary positions, SwiGLU and quantization of rows, for any instruction set V.
#pragma once

#include <cmath>

#include "operations.h"
#include "operations/brain_floats.h"

namespace {

using namespace salmonrun;

// Lanes l and l + 8, l + 4, l + 2, l + 1.
template <class V>
float sum_lanes(typename V::F x) {
  float lane[lanes];
  V::store(lane, x);
  for (int width = lanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

template <class V>
float max_lanes(typename V::F x) {
  float lane[lanes];
  V::store(lane, x);
  float largest = lane[0];
  for (int i = 1; i < lanes; ++i) largest = lane[i] > largest ? lane[i] : largest;
  return largest;
}

template <class V>
typename V::F exp_lanes(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::min(V::max(x, V::set(-87.0f)), V::set(88.0f));
  const F exponent = V::round(V::mul(clamped, V::set(1.4426950408889634f)));
  F r = V::fnma(exponent, V::set(0.693359375f), clamped);
  r = V::fnma(exponent, V::set(-2.12194440e-4f), r);
  F y = V::set(1.9875691500e-4f);
  y = V::fma(y, r, V::set(1.3981999507e-3f));
  y = V::fma(y, r, V::set(8.3334519073e-3f));
  y = V::fma(y, r, V::set(4.1665795894e-2f));
  y = V::fma(y, r, V::set(1.6666665459e-1f));
  y = V::fma(y, r, V::set(5.0000001201e-1f));
  y = V::add(V::fma(y, V::mul(r, r), r), V::set(1.0f));
  return V::zero_where_below(V::mul(y, V::exp2(exponent)), x, -87.0f);
}

template <class V>
void exp_row(float* x, int n) {
  for (int i = 0; i < n; i += lanes) V::store(x + i, exp_lanes<V>(V::load(x + i)));
}

template <class V>
void silu_mul_row(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i += lanes) {
    const typename V::F g = V::load(gate + i);
    const typename V::F divisor = V::add(exp_lanes<V>(V::negate(g)), V::set(1.0f));
    V::store(gate + i, V::mul(V::div(g, divisor), V::load(up + i)));
  }
}

template <class V>
void rms_norm_row(const float* x, const float* weight, int n, float eps, float* out) {
  typename V::F squares = V::set(0.0f);
  for (int i = 0; i < n; i += lanes) {
    const typename V::F part = V::load(x + i);
    squares = V::fma(part, part, squares);
  }
  const float mean = sum_lanes<V>(squares) / static_cast<float>(n);
  const typename V::F inverse = V::set(1.0f / std::sqrt(mean + eps));
  for (int i = 0; i < n; i += lanes)
    V::store(out + i, V::mul(V::mul(V::load(x + i), inverse), V::load(weight + i)));
}

template <class V>
void rotate_head(float* x, const float* cos, const float* sin, int head_dim, float factor) {
  const int half = head_dim / 2;
  float *first = x, *second = x + half;
  int i = 0;
  for (; i + lanes <= half; i += lanes) {
    const typename V::F a = V::load(first + i), b = V::load(second + i), c = V::load(cos + i), s = V::load(sin + i);
    V::store(first + i, V::mul(V::fms(a, c, V::mul(b, s)), V::set(factor)));
    V::store(second + i, V::mul(V::fma(b, c, V::mul(a, s)), V::set(factor)));
  }
  for (; i < half; ++i) {  // half a register, in heads of an odd multiple of 16
    const float a = first[i], b = second[i];
    first[i] = std::fma(a, cos[i], -(b * sin[i])) * factor;
    second[i] = std::fma(b, cos[i], a * sin[i]) * factor;
  }
}

template <class V>
void to_half_row(const float* x, std::uint16_t* out, int n) {
  for (int i = 0; i < n; i += lanes) V::store_half(out + i, V::load(x + i));
}

constexpr float smallest_activation = 1e-30f;  // a block of less counts as zeros: its inverse would not be finite

// x [n], n whole lanes, as integers of `out` times what is returned.
template <class V>
float to_bytes_row(const float* x, std::int8_t* out, int n) {
  using F = typename V::F;
  F largest = V::set(0.0f);
  for (int i = 0; i < n; i += lanes) largest = V::max(V::abs(V::load(x + i)), largest);
  const float bound = max_lanes<V>(largest);
  const F inverse = V::set(bound > smallest_activation ? 127.0f / bound : 0.0f);
  for (int i = 0; i < n; i += lanes) {
    const F scaled = V::round(V::mul(V::load(x + i), inverse));
    V::store_bytes(out + i, V::min(V::max(scaled, V::set(-127.0f)), V::set(127.0f)));
  }
  return bound / 127.0f;
}

template <class V>
void quantize_row(const float* x, const MatrixView& matrix, const ActivationsView& out, std::ptrdiff_t row) {
  if (matrix.takes_floats()) {
    for (int i = 0; i < matrix.columns; i += lanes) V::store(out.floats + row * out.float_stride + i, V::load(x + i));
    return;
  }
  std::int8_t* values = out.values + row * out.value_stride;
  if (matrix.brain_floats()) return to_brain_floats(x, reinterpret_cast<std::uint16_t*>(values), matrix.columns);
  float* scales = out.scales + row * out.scale_stride;
  std::int32_t* starts = out.starts + row * out.start_stride;
  for (int begin = 0; begin < matrix.columns; begin += matrix.activation_block) {
    const int end = begin + matrix.activation_block < matrix.columns ? begin + matrix.activation_block : matrix.columns;
    *scales++ = to_bytes_row<V>(x + begin, values + begin, end - begin);
  }
  if (matrix.multiples)
    for (int i = matrix.columns; i % unit_inputs; ++i) values[i] = 0;
  const int zero_point = 1 << (matrix.bits - 1);
  for (int begin = 0; begin < matrix.columns; begin += matrix.start_block()) {
    std::int32_t sum = 0;
    for (int i = begin; i < begin + matrix.start_block(); ++i) sum += values[i];
    *starts++ = -zero_point * sum;
  }
}

}  // namespace

// What encoders need beside products: layer normalisation, GELU, and attention weights as bytes, for any instruction set V.
#pragma once

#include <cmath>

#include "operations/attention.h"

namespace {

using namespace salmonrun;

// 16 values from x[i] on; behind x[n - 1] `fill` in their place.
template <class V>
typename V::F load_some(const float* x, int i, int n, float fill = 0.0f) {
  if (i + lanes <= n) return V::load(x + i);
  float lane[lanes];
  for (int j = 0; j < lanes; ++j) lane[j] = i + j < n ? x[i + j] : fill;
  return V::load(lane);
}

template <class V>
void store_some(float* x, int i, int n, typename V::F value) {
  if (i + lanes <= n) return V::store(x + i, value);
  float lane[lanes];
  V::store(lane, value);
  for (int j = 0; i + j < n; ++j) x[i + j] = lane[j];
}

template <class V>
void layer_norm_row(const float* x, const float* weight, const float* bias, int n, float eps, float* out) {
  using F = typename V::F;
  F sum = V::set(0.0f), squares = V::set(0.0f);
  for (int i = 0; i < n; i += lanes) sum = V::add(sum, load_some<V>(x, i, n));
  const float mean = sum_lanes<V>(sum) / static_cast<float>(n);
  const F shift = V::set(-mean);
  for (int i = 0; i < n; i += lanes) {
    const F centred = V::add(load_some<V>(x, i, n, mean), shift);
    squares = V::fma(centred, centred, squares);
  }
  const F inverse = V::set(1.0f / std::sqrt(sum_lanes<V>(squares) / static_cast<float>(n) + eps));
  for (int i = 0; i < n; i += lanes) {
    const F normed = V::mul(V::add(load_some<V>(x, i, n), shift), inverse);
    store_some<V>(out, i, n, V::fma(normed, load_some<V>(weight, i, n), load_some<V>(bias, i, n)));
  }
}

// x times the share of a normal distribution below it: max(x, 0) - |x| tail(|x|), where 2 tail(z) = erfc(z / sqrt 2) is
// approximated as in Abramowitz and Stegun 7.1.26, with an error of at most 1.5e-7.
template <class V>
typename V::F gelu_lanes(typename V::F x) {
  using F = typename V::F;
  const F size = V::abs(x);
  const F t = V::div(V::set(1.0f), V::fma(size, V::set(0.3275911f * 0.70710678f), V::set(1.0f)));
  F y = V::set(0.5f * 1.061405429f);
  y = V::fma(y, t, V::set(0.5f * -1.453152027f));
  y = V::fma(y, t, V::set(0.5f * 1.421413741f));
  y = V::fma(y, t, V::set(0.5f * -0.284496736f));
  y = V::fma(y, t, V::set(0.5f * 0.254829592f));
  const F tail = V::mul(V::mul(y, t), exp_lanes<V>(V::mul(V::mul(x, x), V::set(-0.5f))));
  return V::fnma(size, tail, V::max(x, V::set(0.0f)));
}

template <class V>
void gelu_row(float* x, int n) {
  for (int i = 0; i < n; i += lanes) V::store(x + i, gelu_lanes<V>(V::load(x + i)));
}

constexpr int byte_steps = 254;  // of attention weights: bytes from -127 to 127

template <class V>
ByteWeights weigh_row(float* scores, int n, const float* value_scales, std::int8_t* out, int padded) {
  using F = typename V::F;
  const int end = (n + lanes - 1) / lanes * lanes;
  for (int i = n; i < end; ++i) scores[i] = -__builtin_inff();
  F largest = V::load(scores);
  for (int i = lanes; i < end; i += lanes) largest = V::max(V::load(scores + i), largest);
  const F shift = V::set(-max_lanes<V>(largest));
  F total = V::set(0.0f), heaviest = V::set(0.0f);
  for (int i = 0; i < end; i += lanes) {
    const F share = exp_lanes<V>(V::add(V::load(scores + i), shift));
    total = V::add(total, share);
    const F weight = V::mul(share, V::load(value_scales + i));
    heaviest = V::max(weight, heaviest);
    V::store(scores + i, weight);
  }
  const float bound = max_lanes<V>(heaviest);
  const F inverse = V::set(bound > smallest_activation ? byte_steps / bound : 0.0f);
  const F lowest = V::set(-byte_steps / 2), highest = V::set(byte_steps / 2);
  for (int i = 0; i < end; i += lanes) {
    const F steps = V::add(V::round(V::mul(V::load(scores + i), inverse)), lowest);
    V::store_bytes(out + i, V::min(V::max(steps, lowest), highest));
  }
  for (int i = end; i < padded; ++i) out[i] = -byte_steps / 2;
  std::int32_t sum = 0;
  for (int i = 0; i < padded; ++i) sum += out[i];
  return {bound / byte_steps / sum_lanes<V>(total), sum};
}

}  // namespace

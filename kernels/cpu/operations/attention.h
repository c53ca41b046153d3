// Attention of the query heads that share a KV head, at one position, for any instruction set V.
//
// Positions keep the lanes they have in the sequence, so that sums do not depend on where a chunk began. Scores are all
// kept: the largest is known before the first weight, and nothing is rescaled on the way.
#pragma once

#include "operations.h"
#include "operations/elementwise.h"

namespace {

using namespace salmonrun;

constexpr int strips = page_size / lanes;  // of 16 positions, in a page

// How the cache's numbers become floats: V and one of these are a `Cache` below.
template <class V>
struct Halves {
  using Number = std::uint16_t;
  static constexpr bool scaled = false;
  static typename V::F load(const Number* from, typename V::F) { return V::load_half(from); }
};

template <class V>
struct SignedBytes {
  using Number = std::int8_t;
  static constexpr bool scaled = true;
  static typename V::F load(const Number* from, typename V::F scale) { return V::mul(V::load_signed(from), scale); }
};

template <class Cache>
struct Page {
  Page(const std::uint8_t* from, int head_dim)
      : keys(reinterpret_cast<const typename Cache::Number*>(from)), values(keys + page_size * head_dim) {
    if constexpr (Cache::scaled) {
      key_scales = reinterpret_cast<const float*>(values + page_size * head_dim);
      value_scales = key_scales + page_size;
    }
  }

  const typename Cache::Number *keys, *values;
  const float *key_scales = nullptr, *value_scales = nullptr;
};

// Scores of G heads with the 64 positions of a page.
template <class V, class Cache, int G>
void score_page(const AttentionTask& task, int head, const Page<Cache>& page, float* scores, std::ptrdiff_t stride) {
  typename V::F sum[G][strips];
  for (int g = 0; g < G; ++g)
    for (int s = 0; s < strips; ++s) sum[g][s] = V::set(0.0f);
  const float* q = task.q + head * task.head_dim;
  typename V::F scale[strips];
  for (int s = 0; s < strips; ++s) scale[s] = Cache::scaled ? V::load(page.key_scales + s * lanes) : V::set(1.0f);
  for (int d = 0; d < task.head_dim; ++d) {
    typename V::F key[strips];
    for (int s = 0; s < strips; ++s) key[s] = Cache::load(page.keys + (s * task.head_dim + d) * lanes, scale[s]);
    for (int g = 0; g < G; ++g) {
      const typename V::F query = V::set(q[g * task.head_dim + d]);
      for (int s = 0; s < strips; ++s) sum[g][s] = V::fma(query, key[s], sum[g][s]);
    }
  }
  for (int g = 0; g < G; ++g)
    for (int s = 0; s < strips; ++s) V::store(scores + g * stride + s * lanes, sum[g][s]);
}

// Scores to weights, in place; their sum.
template <class V>
float softmax(float* scores, int first, int last) {
  const int begin = first / page_size * page_size, end = (last / lanes + 1) * lanes;
  for (int i = begin; i < first; ++i) scores[i] = -__builtin_inff();
  for (int i = last + 1; i < end; ++i) scores[i] = -__builtin_inff();
  typename V::F largest = V::load(scores + begin);
  for (int i = begin + lanes; i < end; i += lanes) largest = V::max(V::load(scores + i), largest);
  const typename V::F shift = V::set(-max_lanes<V>(largest));
  typename V::F total = V::set(0.0f);
  for (int i = begin; i < end; i += lanes) {
    const typename V::F weight = exp_lanes<V>(V::add(V::load(scores + i), shift));
    V::store(scores + i, weight);
    total = V::add(total, weight);
  }
  return sum_lanes<V>(total);
}

// D x 16 values of G heads: sums over all positions.
template <class V, class Cache, int G, int D>
void gather_values(const AttentionTask& task, int head, int d, const float* totals, const float* scores,
                   std::ptrdiff_t stride) {
  typename V::F sum[G][D];
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < D; ++i) sum[g][i] = V::set(0.0f);
  for (int position = task.first; position <= task.last; ++position) {
    const Page<Cache> page(task.pages[position / page_size], task.head_dim);
    const int place = position % page_size;
    const typename V::F scale = V::set(Cache::scaled ? page.value_scales[place] : 1.0f);
    typename V::F value[D];
    for (int i = 0; i < D; ++i) value[i] = Cache::load(page.values + place * task.head_dim + d + i * lanes, scale);
    for (int g = 0; g < G; ++g) {
      const typename V::F weight = V::set(scores[g * stride + position]);
      for (int i = 0; i < D; ++i) sum[g][i] = V::fma(weight, value[i], sum[g][i]);
    }
  }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < D; ++i)
      V::store(task.out + (head + g) * task.head_dim + d + i * lanes, V::div(sum[g][i], V::set(totals[g])));
}

template <class V, class Cache, int G>
void attend_heads(const AttentionTask& task, int head) {
  const std::ptrdiff_t stride = std::ptrdiff_t{task.last / page_size + 1} * page_size;
  float totals[G];
  for (int page = task.first / page_size; page <= task.last / page_size; ++page)
    score_page<V, Cache, G>(task, head, Page<Cache>(task.pages[page], task.head_dim), task.scores + page * page_size, stride);
  for (int g = 0; g < G; ++g) totals[g] = softmax<V>(task.scores + g * stride, task.first, task.last);
  int d = 0;
  for (; d + 4 * lanes <= task.head_dim; d += 4 * lanes)
    gather_values<V, Cache, G, 4>(task, head, d, totals, task.scores, stride);
  for (; d < task.head_dim; d += lanes) gather_values<V, Cache, G, 1>(task, head, d, totals, task.scores, stride);
}

template <class V, class Cache>
void attend_over(const AttentionTask& task) {
  int head = 0;
  for (; head + 4 <= task.group; head += 4) attend_heads<V, Cache, 4>(task, head);
  for (; head + 2 <= task.group; head += 2) attend_heads<V, Cache, 2>(task, head);
  for (; head < task.group; ++head) attend_heads<V, Cache, 1>(task, head);
}

template <class V>
void attend(const AttentionTask& task) {
  if (task.number == CacheNumber::half) return attend_over<V, Halves<V>>(task);
  attend_over<V, SignedBytes<V>>(task);
}

}  // namespace

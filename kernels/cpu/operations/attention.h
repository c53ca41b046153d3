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

// Scores of G heads with the 64 positions of a page.
template <class V, int G>
void score_page(const AttentionTask& task, int head, const std::uint16_t* keys, float* scores, std::ptrdiff_t stride) {
  typename V::F sum[G][strips];
  for (int g = 0; g < G; ++g)
    for (int s = 0; s < strips; ++s) sum[g][s] = V::set(0.0f);
  const float* q = task.q + head * task.head_dim;
  for (int d = 0; d < task.head_dim; ++d) {
    typename V::F key[strips];
    for (int s = 0; s < strips; ++s) key[s] = V::load_half(keys + (s * task.head_dim + d) * lanes);
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
template <class V, int G, int D>
void gather_values(const AttentionTask& task, int head, int d, const float* totals, const float* scores,
                   std::ptrdiff_t stride) {
  typename V::F sum[G][D];
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < D; ++i) sum[g][i] = V::set(0.0f);
  for (int position = task.first; position <= task.last; ++position) {
    const std::uint16_t* values =
        task.pages[position / page_size] + (page_size + position % page_size) * task.head_dim + d;
    typename V::F value[D];
    for (int i = 0; i < D; ++i) value[i] = V::load_half(values + i * lanes);
    for (int g = 0; g < G; ++g) {
      const typename V::F weight = V::set(scores[g * stride + position]);
      for (int i = 0; i < D; ++i) sum[g][i] = V::fma(weight, value[i], sum[g][i]);
    }
  }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < D; ++i)
      V::store(task.out + (head + g) * task.head_dim + d + i * lanes, V::div(sum[g][i], V::set(totals[g])));
}

template <class V, int G>
void attend_heads(const AttentionTask& task, int head) {
  const std::ptrdiff_t stride = std::ptrdiff_t{task.last / page_size + 1} * page_size;
  float totals[G];
  for (int page = task.first / page_size; page <= task.last / page_size; ++page)
    score_page<V, G>(task, head, task.pages[page], task.scores + page * page_size, stride);
  for (int g = 0; g < G; ++g) totals[g] = softmax<V>(task.scores + g * stride, task.first, task.last);
  int d = 0;
  for (; d + 4 * lanes <= task.head_dim; d += 4 * lanes) gather_values<V, G, 4>(task, head, d, totals, task.scores, stride);
  for (; d < task.head_dim; d += lanes) gather_values<V, G, 1>(task, head, d, totals, task.scores, stride);
}

template <class V>
void attend(const AttentionTask& task) {
  int head = 0;
  for (; head + 4 <= task.group; head += 4) attend_heads<V, 4>(task, head);
  for (; head + 2 <= task.group; head += 2) attend_heads<V, 2>(task, head);
  for (; head < task.group; ++head) attend_heads<V, 1>(task, head);
}

}  // namespace

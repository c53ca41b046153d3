// Attention of an encoder's layer: every position of a recording sees all of them, and those that were kept of its past.
//
// Keys and values are kept as bytes, or as floats where the weights are floats or bfloat16. For a head they are packed as matrices of
// layout t16, once, so that scores and sums of values are products like any other, of a few queries at a time: memory grows
// with the number of positions, not with its square.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "encoder_weights.h"
#include "operations.h"
#include "products.h"
#include "thread_pool.h"

namespace salmonrun {

// Positions of one recording, in the layer at hand.
struct Recording {
  int first;           // its first row, among those of all recordings
  int count;           // new positions
  int past;            // positions kept from before
  std::uint8_t* kept;  // [past + count][position_bytes]

  int positions() const { return past + count; }
};

class EncoderAttention {
 public:
  // All must outlive this.
  EncoderAttention(const EncoderWeights& weights, const Operations& operations, ThreadPool& pool);

  // Of a position's keys and values: bytes [dim] each and their scales [heads] in float32, or floats [dim] each.
  int position_bytes() const;

  // Keys and values [dim] of a position, to `kept`. For one thread at a time each.
  void keep(const float* keys, const float* values, std::uint8_t* kept, int thread);

  // Queries [rows of all recordings][stride] to what they attend to, `out` [rows][stride].
  void attend(std::span<const Recording> recordings, const Gate* gate, const float* queries, float* out, int stride);

 private:
  struct Panel {  // keys and values of one head of a recording, packed
    MatrixView keys, values;
    float* value_scales;  // [positions, filled up]; of bytes
    float* value_sums;    // [head_dim, filled up]: of a head's values, times 127; of bytes
  };
  struct Scratch {  // of a thread
    Buffer<float> queries, scores, out, query_scales, weight_scales;
    Buffer<std::int8_t> quantized, weights;
    Buffer<std::int32_t> query_starts, weight_starts;
    Buffer<std::uint8_t> unpacked;
  };

  bool bytes() const { return bits_ <= 8; }  // keys and values are kept so, else as floats
  bool brain_floats() const { return bits_ == 16; }
  int inputs() const;  // of a key: head_dim, filled up to what products take
  int outputs() const;
  std::size_t panel_bytes(int positions) const;
  Panel panel(std::uint8_t* at, int positions) const;
  void pack(const Recording& recording, int head, const Panel& panel) const;
  void pack_bytes(const Recording& recording, int head, const Panel& panel) const;
  template <class Number, class Convert>
  void pack_floats(const Recording& recording, int head, const Panel& panel, int at_once, Convert convert) const;
  void attend_some(const Recording& recording, int head, const Panel& panel, const Gate* gate, int first, int count,
                   const float* queries, float* out, int stride, Scratch& scratch) const;
  void add_bias(const Recording& recording, int head, const Gate& gate, int query, const float* q, float* scores) const;
  ActivationsView quantized_queries(const Panel& panel, int count, Scratch& scratch) const;
  ActivationsView shares(const Panel& panel, int count, Scratch& scratch) const;

  const EncoderWeights& weights_;
  const Operations& operations_;
  ThreadPool& pool_;
  int bits_, head_dim_;
  std::vector<std::uint16_t> ones_;  // scales of values, whose own are in the weights
  std::vector<float> bias_;          // [heads][distances, and room to read whole lanes]
  int bias_stride_ = 0;
  Buffer<std::uint8_t> panels_;
  std::vector<Scratch> scratch_;
};

}  // namespace salmonrun

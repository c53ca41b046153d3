// The whole forward pass of an LLM over a ragged round of chunks.
#pragma once

#include <span>

#include "kv_cache.h"
#include "operations.h"
#include "products.h"
#include "routing.h"
#include "thread_pool.h"
#include "weights.h"

namespace salmonrun {

// What a round appends to one sequence.
struct Chunk {
  int sequence;
  int count;   // positions
  int wanted;  // logits of so many last ones
};

class Model {
 public:
  Model(Weights weights, const Operations& operations, int threads, CacheNumber cache);

  // Appends each chunk to its sequence. `embeds` [positions of all chunks][dim], `logits` [all that are wanted][vocab].
  // Throws std::out_of_range for a sequence that is not open, std::invalid_argument for one that would be too long, or a
  // count that is none: nothing has changed then.
  void forward(std::span<const Chunk> chunks, std::span<const float> embeds, std::span<float> logits);

  KVCache& cache() { return cache_; }
  const Weights& weights() const { return weights_; }
  const Operations& operations() const { return operations_; }
  int threads() const { return pool_.threads(); }

 private:
  struct Row {  // one new position
    int sequence, position;
    float* logits;  // null: not wanted
  };
  struct Part {  // rows that an MLP computes
    const Mlp* mlp;
    int first, rows;
  };

  void check(std::span<const Chunk> chunks, std::span<const float> embeds, std::span<float> logits) const;
  void run(std::vector<Row>& rows, const float* embeds);
  void run_layer(int index, std::vector<Row>& rows);
  void attention(int index, std::vector<Row>& rows);
  void rotate_and_store(const Layer& layer, int index, const Row& row, int i);
  void store(int index, const Row& row, int kv_head, const float* key, const float* value);
  void attend(const Layer& layer, int index, const std::vector<Row>& rows);
  void keep_wanted(std::vector<Row>& rows);
  void feed_forward(const Layer& layer, int rows);
  void route(const Layer& layer, const Mixture& mixture, int rows);
  std::vector<Part> distribute(const Mixture& mixture, int rows);
  void combine(const Mixture& mixture, int rows);
  float shared_share(const Mixture& mixture, int row);
  void run_mlps(std::span<const Part> parts, float* out, bool add);
  ActivationsView hide(std::span<const Part> parts, const ActivationsView& x, int rows);
  void head(const std::vector<Row>& rows);

  void norm_and_quantize(const std::vector<float>& norm, int rows, const Matrix& matrix);

  Weights weights_;
  const Operations& operations_;
  KVCache cache_;
  ThreadPool pool_;
  Products products_, hidden_;  // of rows, and within their MLPs
  int dim_, heads_stride_, kv_stride_;  // of rows: padded sizes
  Buffer<float> x_, q_, k_, v_, attended_, gate_, up_, normed_, scores_, shares_, expert_outputs_;
  Buffer<const std::uint8_t*> pages_;
  std::vector<Choice> choices_;  // of a mixture: [rows][per_token]
  std::vector<int> sources_;     // whose row each row of its experts is
};

}  // namespace salmonrun

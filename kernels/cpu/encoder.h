// The layers of an encoder over positions of recordings, which do not see each other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "encoder_attention.h"
#include "encoder_weights.h"
#include "operations.h"
#include "products.h"
#include "thread_pool.h"

namespace salmonrun {

class Encoder {
 public:
  Encoder(EncoderWeights weights, const Operations& operations, int threads);

  // New positions of a recording, what was kept of those before, and where to keep all; empty: nowhere.
  struct Part {
    int count;
    std::span<const std::uint8_t> past;  // [layers][positions before][position_bytes]
    std::span<std::uint8_t> present;     // [layers][positions before + count][position_bytes]
  };

  // x [positions of all parts][dim], in place. What becomes of a position does not depend on the other parts.
  // Throws std::invalid_argument where sizes do not fit: nothing has changed then.
  void forward(std::span<const Part> parts, std::span<float> x);

  // x [rows][columns], `stride` apart, to out [rows][outputs], through `gelu` or not.
  void product(const Matrix& matrix, const float* x, std::ptrdiff_t stride, int rows, float* out, bool gelu);

  // Rows [dim] of x, in place.
  void normalize(const LayerNorm& norm, std::span<float> x);

  void gelu(std::span<float> x);  // in place

  const EncoderWeights& weights() const { return weights_; }
  const Operations& operations() const { return operations_; }
  int position_bytes() const { return attention_.position_bytes(); }
  int threads() const { return pool_.threads(); }

 private:
  std::vector<Recording> recordings_of(std::span<const Part> parts, std::size_t values) const;
  void run_layer(std::size_t index, std::span<const Part> parts, std::vector<Recording>& recordings);
  void begin_layer(std::size_t index, std::span<const Part> parts, std::vector<Recording>& recordings);
  void project(const EncoderLayer& layer, std::span<const Recording> recordings, int first, int rows);
  void finish(const EncoderLayer& layer, int first, int rows);
  void quantize(const LayerNorm* norm, int first, int rows, const Matrix& matrix);
  void linear(Products& from, const Linear& linear, int rows, float* out, int stride, bool add);
  Products& narrow(Products& from, const Linear& linear, int rows);
  void normalize_rows(const LayerNorm& norm, int first, int rows);

  EncoderWeights weights_;
  const Operations& operations_;
  ThreadPool pool_;
  EncoderAttention attention_;
  Products products_, thin_, hidden_;  // of rows, of what lies between two thin matrices, and within the MLP
  int dim_;                   // of rows: padded
  Buffer<float> x_, q_, k_, v_, attended_, between_, normed_;
  Buffer<std::uint8_t> kept_;  // of one layer, where nothing is to be kept
};

}  // namespace salmonrun

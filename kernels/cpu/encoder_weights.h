// The transformer of an encoder of audio: Whisper's, BEATs', EAT's.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "weights.h"

namespace salmonrun {

struct LayerNorm {
  std::vector<float> weight, bias;  // [dim]
  float eps;

  int dim() const { return static_cast<int>(weight.size()); }
};

// One matrix, or two thin ones in its place: up x (down x input).
struct Linear {
  Matrix up;
  std::optional<Matrix> down;

  const Matrix& first() const { return down ? *down : up; }
  int rows() const { return up.rows(); }
  int columns() const { return first().columns(); }
};

// How much of BEATs' relative position bias a query takes (Chen et al. 2022, after WavLM): of a head's query q
// a = sigmoid(weight[0] q + bias[0]), b = sigmoid(weight[1] q + bias[1]), and the gate a (b scale[head] - 1) + 2.
struct Gate {
  std::vector<float> weight;  // [2][head_dim, filled up to whole lanes]
  std::vector<float> bias;    // [2]
  std::vector<float> scale;   // [heads]
  int head_dim;
};

struct EncoderLayer {
  Linear q, k, v, out, fc1, fc2;
  LayerNorm attention_norm, mlp_norm;
  std::optional<Gate> gate;

  std::array<const Linear*, 6> linears() const { return {&q, &k, &v, &out, &fc1, &fc2}; }
};

struct EncoderWeights {
  std::vector<EncoderLayer> layers;
  int heads;
  bool norm_first;                      // x + f(norm(x)), as Whisper has it; else norm(x + f(x))
  std::optional<LayerNorm> norm;        // behind the last layer
  std::vector<float> bias_by_distance;  // [heads][2 longest - 1], of key - query; empty: there is none

  int dim() const { return layers.front().q.columns(); }
  int head_dim() const { return dim() / heads; }
  int longest() const { return static_cast<int>(bias_by_distance.size() / static_cast<std::size_t>(heads) + 1) / 2; }
  // That matrices have; beside those of 8 bits there may be some of floats.
  int bits() const;

  // Throws std::invalid_argument where parts do not fit together.
  void check() const;
};

}  // namespace salmonrun

// An LLM of the Llama family: its matrices as they lie in the file, its vectors copied.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "operations.h"

namespace salmonrun {

// n floats, and zeros up to a multiple of `padding`.
std::vector<float> padded(std::span<const float> values);
int padded(int n);

// Whatever keeps the bytes that spans point to.
using Owner = std::shared_ptr<const void>;

class Matrix {
 public:
  // `packed` and `scales` stay where they are, kept by `owner`. Throws std::invalid_argument where sizes do not fit; what the
  // values are cannot do harm.
  Matrix(std::span<const std::uint8_t> packed, std::span<const std::uint16_t> scales, std::span<const float> bias,
         int rows, int columns, int bits, int block, int activation_block, Owner owner);

  // Of int4 in super-blocks.
  Matrix(std::span<const std::uint8_t> packed, std::span<const std::int8_t> multiples, std::span<const std::uint16_t> scales,
         std::span<const float> bias, int rows, int columns, Owner owner);

  // Of floats [groups][columns][16], which stay where they are, too.
  Matrix(std::span<const float> packed, std::span<const float> bias, int rows, int columns, Owner owner);

  // Of bfloat16 [groups][columns / 2][16][2], `columns` filled up to an even number.
  static Matrix brain_floats(std::span<const std::uint16_t> packed, std::span<const float> bias, int rows, int columns, Owner owner);

  // Of nf4; products are of floats.
  Matrix(std::span<const std::uint8_t> packed, std::span<const float> scales, std::span<const float> bias, int rows,
         int columns, int block, Owner owner);

  // `view().columns` may be more than this, whole blocks.
  int columns() const { return columns_; }
  int rows() const { return view_.rows; }
  MatrixView view() const {
    MatrixView view = view_;
    view.bias = bias_.empty() ? nullptr : bias_.data();
    return view;
  }

 private:
  Matrix(MatrixView view, int columns, Owner owner) : view_(view), columns_(columns), owner_(std::move(owner)) {}
  void set(std::size_t packed, std::size_t scales, std::span<const float> bias);

  MatrixView view_;
  int columns_;
  std::vector<float> bias_;
  Owner owner_;
};

struct Mlp {
  Matrix gate, up, down;
};

// Experts, of which each row is computed by a few.
struct Mixture {
  std::vector<float> router;  // [experts][padded dim]
  std::vector<Mlp> experts;
  int per_token;
  bool normalised;                 // the weights of those chosen are made to sum to one
  std::optional<Mlp> shared;       // computes every row
  std::vector<float> shared_gate;  // padded; how much of it, before a sigmoid
};

struct Layer {
  std::vector<float> input_norm, post_norm;  // padded
  std::vector<float> q_norm, k_norm;         // [head_dim], whole lanes; empty: none
  Matrix q, k, v, o;
  std::variant<Mlp, Mixture> mlp;
  int window;  // positions seen, the own included; 0: all

  // All there are, the shared one last.
  std::vector<const Mlp*> mlps() const;
};

struct Weights {
  std::vector<Layer> layers;
  std::vector<float> norm;
  Matrix head;
  std::vector<float> cos, sin;  // [max_length][head_dim / 2]
  int heads, kv_heads, head_dim;
  float eps;

  int dim() const { return head.columns(); }
  int max_length() const { return static_cast<int>(cos.size() / static_cast<std::size_t>(head_dim / 2)); }

  // Throws std::invalid_argument where parts do not fit together.
  void check() const;

 private:
  void check_attention(const Layer& layer) const;
  void check_mlps(const Layer& layer) const;
  void check_mixture(const Mixture& mixture) const;
};

}  // namespace salmonrun

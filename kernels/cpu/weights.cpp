#include "weights.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace salmonrun {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

void require_size(std::size_t found, std::size_t expected, const std::string& what) {
  require(found == expected, what + ": " + std::to_string(found) + " values, expected " + std::to_string(expected));
}

bool one_of(int value, std::initializer_list<int> allowed) {
  return std::find(allowed.begin(), allowed.end(), value) != allowed.end();
}

void require_shape(const Matrix& matrix, std::int64_t rows, std::int64_t columns, const std::string& name) {
  require(matrix.rows() == rows && matrix.columns() == columns,
          name + " is " + std::to_string(matrix.rows()) + " x " + std::to_string(matrix.columns()) + ", expected " +
              std::to_string(rows) + " x " + std::to_string(columns));
}

constexpr int largest_size = 1 << 24;  // of a matrix's sides: what is computed from them stays far from overflow

}  // namespace

int padded(int n) { return (n + padding - 1) / padding * padding; }

std::vector<float> padded(std::span<const float> values) {
  std::vector<float> out(static_cast<std::size_t>(padded(static_cast<int>(values.size()))), 0.0f);
  std::copy(values.begin(), values.end(), out.begin());
  return out;
}

Matrix::Matrix(std::span<const std::uint8_t> packed, std::span<const std::uint16_t> scales, std::span<const float> bias,
               int rows, int columns, int bits, int block, int activation_block, Owner owner)
    : columns_(columns), owner_(std::move(owner)) {
  require(rows > 0 && columns > 0 && rows <= largest_size && columns <= largest_size,
          "a matrix of " + std::to_string(rows) + " x " + std::to_string(columns));
  require(one_of(bits, {4, 8}), std::to_string(bits) + " bits; expected 4 or 8");
  require(one_of(block, {32, 64, 128}), "blocks of " + std::to_string(block) + "; expected 32, 64 or 128");
  require(one_of(activation_block, {32, 64, 128, 256}) && activation_block % block == 0,
          "activations in blocks of " + std::to_string(activation_block) + "; expected 32, 64, 128 or 256, a multiple of " +
              std::to_string(block));
  const int whole = (columns + block - 1) / block * block;
  view_ = {packed.data(), scales.data(), nullptr, rows, whole, bits, block, activation_block};
  const auto groups = static_cast<std::size_t>(view_.groups());
  require_size(packed.size(), groups * static_cast<std::size_t>(view_.group_bytes()), "packed weights");
  require_size(scales.size(), groups * static_cast<std::size_t>(view_.blocks()) * lanes, "scales");
  require(bias.empty() || bias.size() == static_cast<std::size_t>(rows),
          "bias of " + std::to_string(bias.size()) + " values, expected " + std::to_string(rows));
  bias_ = padded(bias);
}

void Weights::check() const {
  require(!layers.empty(), "no layers");
  require(head_dim > 0 && head_dim % lanes == 0, "head_dim is " + std::to_string(head_dim) + "; expected a multiple of 16");
  require(kv_heads > 0 && heads > 0 && heads % kv_heads == 0,
          std::to_string(heads) + " heads cannot share " + std::to_string(kv_heads) + " KV heads evenly");
  require(max_length() > 0, "no rotary positions");
  require_size(cos.size(), sin.size(), "rope.cos");
  require_size(cos.size() % static_cast<std::size_t>(head_dim / 2), 0, "rope.cos behind its last row");
  require_size(norm.size(), static_cast<std::size_t>(padded(dim())), "norm");
  // Of numbers that may still be of any size.
  const std::int64_t q_dim = std::int64_t{heads} * head_dim, kv_dim = std::int64_t{kv_heads} * head_dim;
  for (const Layer& layer : layers) {
    require_size(layer.input_norm.size(), norm.size(), "input_layernorm");
    require_size(layer.post_norm.size(), norm.size(), "post_attention_layernorm");
    for (const auto* of_a_head : {&layer.q_norm, &layer.k_norm})
      if (!of_a_head->empty())
        require_size(of_a_head->size(), static_cast<std::size_t>(head_dim), "norm of a head");
    require_shape(layer.q, q_dim, dim(), "q_proj");
    require_shape(layer.k, kv_dim, dim(), "k_proj");
    require_shape(layer.v, kv_dim, dim(), "v_proj");
    require_shape(layer.o, dim(), q_dim, "o_proj");
    require_shape(layer.gate, intermediate(), dim(), "gate_proj");
    require_shape(layer.up, intermediate(), dim(), "up_proj");
    require_shape(layer.down, dim(), intermediate(), "down_proj");
    require(layer.window >= 0, "a window of " + std::to_string(layer.window));
    // Products that share their inputs share how these are quantized.
    for (const auto& [one, other] : {std::pair{&layer.q, &layer.k}, {&layer.q, &layer.v}, {&layer.gate, &layer.up}}) {
      const MatrixView a = one->view(), b = other->view();
      require(a.bits == b.bits && a.block == b.block && a.activation_block == b.activation_block,
              "q, k and v, or gate and up, are quantized in different ways");
    }
  }
}

}  // namespace salmonrun

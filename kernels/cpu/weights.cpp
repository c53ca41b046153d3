#include "weights.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "require.h"

namespace salmonrun {

namespace {

bool one_of(int value, std::initializer_list<int> allowed) {
  return std::find(allowed.begin(), allowed.end(), value) != allowed.end();
}

constexpr int largest_size = 1 << 24;  // of a matrix's sides: what is computed from them stays far from overflow

void check_sizes(int rows, int columns) {
  require(rows > 0 && columns > 0 && rows <= largest_size && columns <= largest_size,
          "a matrix of " + std::to_string(rows) + " x " + std::to_string(columns));
}

void check_sizes(int rows, int columns, int block) {
  check_sizes(rows, columns);
  require(one_of(block, {32, 64, 128}), "blocks of " + std::to_string(block) + "; expected 32, 64 or 128");
}

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
  check_sizes(rows, columns, block);
  require(one_of(bits, {4, 8}), std::to_string(bits) + " bits; expected 4 or 8");
  require(one_of(activation_block, {32, 64, 128, 256}) && activation_block % block == 0,
          "activations in blocks of " + std::to_string(activation_block) + "; expected 32, 64, 128 or 256, a multiple of " +
              std::to_string(block));
  const int whole = (columns + block - 1) / block * block;
  view_ = {packed.data(), scales.data(), nullptr, nullptr, rows, whole, bits, block, activation_block};
  set(packed.size(), scales.size(), bias);
}

Matrix::Matrix(std::span<const std::uint8_t> packed, std::span<const std::int8_t> multiples, std::span<const std::uint16_t> scales,
               std::span<const float> bias, int rows, int columns, Owner owner)
    : columns_(columns), owner_(std::move(owner)) {
  check_sizes(rows, columns);
  const int whole = (columns + multiple_block - 1) / multiple_block * multiple_block;
  view_ = {packed.data(), scales.data(), nullptr, nullptr, rows, whole, 4, super_block, super_block, multiples.data()};
  require_size(multiples.size(), static_cast<std::size_t>(view_.groups()) * static_cast<std::size_t>(view_.starts()) * lanes, "multiples");
  set(packed.size(), scales.size(), bias);
}

Matrix::Matrix(std::span<const std::uint8_t> packed, std::span<const float> scales, std::span<const float> bias, int rows,
               int columns, int block, Owner owner)
    : columns_(columns), owner_(std::move(owner)) {
  check_sizes(rows, columns, block);
  const int whole = (columns + block - 1) / block * block;
  view_ = {packed.data(), nullptr, scales.data(), nullptr, rows, whole, 4, block, block};
  set(packed.size(), scales.size(), bias);
}

Matrix::Matrix(std::span<const float> packed, std::span<const float> bias, int rows, int columns, Owner owner)
    : columns_(columns), owner_(std::move(owner)) {
  check_sizes(rows, columns);
  view_ = {reinterpret_cast<const std::uint8_t*>(packed.data()), nullptr, nullptr, nullptr, rows, columns, 32, columns, columns};
  set(packed.size_bytes(), static_cast<std::size_t>(view_.groups()) * lanes, bias);
}

Matrix Matrix::brain_floats(std::span<const std::uint16_t> packed, std::span<const float> bias, int rows, int columns, Owner owner) {
  check_sizes(rows, columns);
  const int whole = columns + columns % 2;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(packed.data());
  Matrix made({bytes, nullptr, nullptr, nullptr, rows, whole, 16, whole, whole}, columns, std::move(owner));
  made.set(packed.size_bytes(), static_cast<std::size_t>(made.view_.groups()) * lanes, bias);
  return made;
}

void Matrix::set(std::size_t packed, std::size_t scales, std::span<const float> bias) {
  const auto groups = static_cast<std::size_t>(view_.groups());
  require_size(packed, groups * static_cast<std::size_t>(view_.group_bytes()), "packed weights");
  require_size(scales, groups * static_cast<std::size_t>(view_.blocks()) * lanes, "scales");
  require(bias.empty() || bias.size() == static_cast<std::size_t>(view_.rows),
          "bias of " + std::to_string(bias.size()) + " values, expected " + std::to_string(view_.rows));
  bias_ = padded(bias);
}

std::vector<const Mlp*> Layer::mlps() const {
  if (const Mlp* alone = std::get_if<Mlp>(&mlp)) return {alone};
  const Mixture& mixture = std::get<Mixture>(mlp);
  std::vector<const Mlp*> all;
  for (const Mlp& expert : mixture.experts) all.push_back(&expert);
  if (mixture.shared) all.push_back(&*mixture.shared);
  return all;
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
  for (const Layer& layer : layers) {
    require_size(layer.input_norm.size(), norm.size(), "input_layernorm");
    require_size(layer.post_norm.size(), norm.size(), "post_attention_layernorm");
    check_attention(layer);
    if (const Mixture* mixture = std::get_if<Mixture>(&layer.mlp)) check_mixture(*mixture);
    check_mlps(layer);
  }
}

void Weights::check_attention(const Layer& layer) const {
  for (const auto* of_a_head : {&layer.q_norm, &layer.k_norm})
    if (!of_a_head->empty()) require_size(of_a_head->size(), static_cast<std::size_t>(head_dim), "norm of a head");
  // Of numbers that may still be of any size.
  const std::int64_t q_dim = std::int64_t{heads} * head_dim, kv_dim = std::int64_t{kv_heads} * head_dim;
  require_shape(layer.q, q_dim, dim(), "q_proj");
  require_shape(layer.k, kv_dim, dim(), "k_proj");
  require_shape(layer.v, kv_dim, dim(), "v_proj");
  require_shape(layer.o, dim(), q_dim, "o_proj");
  require(layer.window >= 0, "a window of " + std::to_string(layer.window));
  require_alike(layer.q, layer.k, "q, k and v");
  require_alike(layer.q, layer.v, "q, k and v");
}

void Weights::check_mlps(const Layer& layer) const {
  const std::vector<const Mlp*> mlps = layer.mlps();
  for (const Mlp* mlp : mlps) {
    const int intermediate = mlp->down.columns();
    require_shape(mlp->gate, intermediate, dim(), "gate_proj");
    require_shape(mlp->up, intermediate, dim(), "up_proj");
    require_shape(mlp->down, dim(), intermediate, "down_proj");
    require_alike(mlp->gate, mlps.front()->gate, "the experts");
    require_alike(mlp->gate, mlp->up, "gate and up");
    require_alike(mlp->down, mlps.front()->down, "the experts");
  }
}

void Weights::check_mixture(const Mixture& mixture) const {
  const std::size_t experts = mixture.experts.size(), width = static_cast<std::size_t>(padded(dim()));
  require(mixture.per_token > 0 && static_cast<std::size_t>(mixture.per_token) <= experts,
          std::to_string(mixture.per_token) + " experts a position of " + std::to_string(experts));
  require_size(mixture.router.size(), experts * width, "router");
  require_size(mixture.shared_gate.size(), mixture.shared ? width : 0, "shared_expert_gate");
}

}  // namespace salmonrun

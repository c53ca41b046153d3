#include "encoder_weights.h"

#include <stdexcept>
#include <string>

#include "require.h"

namespace salmonrun {
namespace {

void check_linear(const Linear& linear, int rows, int columns, int bits, const std::string& name) {
  require_shape(linear.up, rows, linear.down ? linear.down->rows() : columns, name);
  if (linear.down) require_shape(*linear.down, linear.down->rows(), columns, name + ".down");
  const bool exact = bits == 8 && linear.up.view().floats();
  for (const Matrix* matrix : {&linear.up, &linear.first()})
    require(matrix->view().bits == (exact ? 32 : bits) && !matrix->view().nf4(), name + " is stored in another way than the others");
}

void check_norm(const LayerNorm& norm, int dim, const std::string& name) {
  require_size(norm.weight.size(), static_cast<std::size_t>(dim), name + ".weight");
  require_size(norm.bias.size(), static_cast<std::size_t>(dim), name + ".bias");
}

void check_gate(const EncoderWeights& weights, const Gate& gate) {
  require_size(static_cast<std::size_t>(2 * gate.head_dim), static_cast<std::size_t>(2 * weights.head_dim()), "gate.weight");
  require_size(gate.bias.size(), 2, "gate.bias");
  require_size(gate.scale.size(), static_cast<std::size_t>(weights.heads), "gate.scale");
}

}  // namespace

int EncoderWeights::bits() const {
  for (const EncoderLayer& layer : layers)
    for (const Linear* linear : layer.linears())
      if (!linear->first().view().floats()) return linear->first().view().bits;
  return 32;
}

void EncoderWeights::check() const {
  require(!layers.empty(), "no layers");
  require(heads > 0 && dim() % heads == 0, std::to_string(heads) + " heads cannot share " + std::to_string(dim()) + " values evenly");
  const auto distances = bias_by_distance.size() / static_cast<std::size_t>(heads);
  require(bias_by_distance.empty() || (bias_by_distance.size() % static_cast<std::size_t>(heads) == 0 && distances % 2 == 1),
          "bias_by_distance: " + std::to_string(bias_by_distance.size()) + " values, expected as many for each head, an odd number");
  const int bits = this->bits();
  for (const EncoderLayer& layer : layers) {
    const int ffn = layer.fc1.rows();
    check_linear(layer.q, dim(), dim(), bits, "q_proj");
    check_linear(layer.k, dim(), dim(), bits, "k_proj");
    check_linear(layer.v, dim(), dim(), bits, "v_proj");
    check_linear(layer.out, dim(), dim(), bits, "out_proj");
    check_linear(layer.fc1, ffn, dim(), bits, "fc1");
    check_linear(layer.fc2, dim(), ffn, bits, "fc2");
    require_alike(layer.q.first(), layer.k.first(), "q, k and v");
    require_alike(layer.q.first(), layer.v.first(), "q, k and v");
    check_norm(layer.attention_norm, dim(), "attention_norm");
    check_norm(layer.mlp_norm, dim(), "mlp_norm");
    require(layer.gate.has_value() == !bias_by_distance.empty(), "gates are there without a bias, or a bias without them");
    if (layer.gate) check_gate(*this, *layer.gate);
  }
  if (norm) check_norm(*norm, dim(), "norm");
}

}  // namespace salmonrun

// What Python sees. Arrays are checked here for dtype, contiguity and size; what they mean is checked where it is used.
// noconvert: weights are used as they lie, and results are written where the caller looks, not into a converted copy.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "binding.h"
#include "float_mode.h"
#include "instruction_sets.h"
#include "model.h"
#include "require.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace salmonrun {
namespace {

void make_matrix(Matrix* self, Array<const std::uint8_t> packed, Array<const std::uint16_t> scales, int rows, int columns,
                 int bits, int block, int activation_block, const std::optional<Floats>& bias) {
  const Owner owner = keep(nb::make_tuple(packed, scales));
  new (self) Matrix(span(packed), span(scales), span(bias), rows, columns, bits, block, activation_block, owner);
}

Matrix super_matrix(Array<const std::uint8_t> packed, Array<const std::int8_t> multiples, Array<const std::uint16_t> scales, int rows,
                    int columns, const std::optional<Floats>& bias) {
  return Matrix(span(packed), span(multiples), span(scales), span(bias), rows, columns, keep(nb::make_tuple(packed, multiples, scales)));
}

Matrix float_matrix(Array<const float> packed, int rows, int columns, const std::optional<Floats>& bias) {
  return Matrix(span(packed), span(bias), rows, columns, keep(packed.cast()));
}

Matrix brain_float_matrix(Array<const std::uint16_t> packed, int rows, int columns, const std::optional<Floats>& bias) {
  return Matrix::brain_floats(span(packed), span(bias), rows, columns, keep(packed.cast()));
}

Matrix nf4_matrix(Array<const std::uint8_t> packed, Array<const float> scales, int rows, int columns, int block,
                  const std::optional<Floats>& bias) {
  return Matrix(span(packed), span(scales), span(bias), rows, columns, block, keep(nb::make_tuple(packed, scales)));
}

// Checked before it is padded: afterwards another size may look the same.
std::vector<float> padded_vector(const Floats& vector, int dim, const std::string& name) {
  if (vector.size() != static_cast<std::size_t>(dim))
    throw std::invalid_argument(name + ": " + std::to_string(vector.size()) + " values, expected " + std::to_string(dim));
  return padded(span(vector));
}

Layer make_layer(const Floats& input_norm, const Matrix& q, const Matrix& k, const Matrix& v, const Matrix& o,
                 const Floats& post_norm, const std::variant<Mlp, Mixture>& mlp, const std::optional<Floats>& q_norm, const std::optional<Floats>& k_norm, std::optional<int> window) {
  return {padded_vector(input_norm, q.columns(), "input_layernorm"),
          padded_vector(post_norm, q.columns(), "post_attention_layernorm"),
          copy(span(q_norm)),
          copy(span(k_norm)),
          q, k, v, o, mlp, window.value_or(0)};
}

Mixture make_mixture(const Floats& router, const std::vector<Mlp>& experts, int per_token, bool normalised,
                     const std::optional<Mlp>& shared, const std::optional<Floats>& shared_gate) {
  if (experts.empty()) throw std::invalid_argument("a mixture of no experts");
  const int dim = experts.front().gate.columns();
  const std::size_t width = static_cast<std::size_t>(dim);
  if (router.size() != experts.size() * width)
    throw std::invalid_argument("router: " + std::to_string(router.size()) + " values, expected " +
                                std::to_string(experts.size()) + " x " + std::to_string(dim));
  std::vector<float> rows;
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const std::vector<float> row = padded(span(router).subspan(i * width, width));
    rows.insert(rows.end(), row.begin(), row.end());
  }
  std::vector<float> gate;
  if (shared_gate) gate = padded_vector(*shared_gate, dim, "shared_expert_gate");
  return {std::move(rows), experts, per_token, normalised, shared, std::move(gate)};
}

void make_model(Model* self, const std::vector<Layer>& layers, const Floats& norm, const Matrix& head, const Floats& cos,
                const Floats& sin, int heads, int kv_heads, int head_dim, float eps, const std::string& name, int threads,
                int cache_bits) {
  if (cache_bits != 8 && cache_bits != 16)
    throw std::invalid_argument("a cache of " + std::to_string(cache_bits) + " bits; expected 8 or 16");
  if (threads < 1) throw std::invalid_argument(std::to_string(threads) + " threads; expected at least 1");
  Weights weights{layers, padded_vector(norm, head.columns(), "norm"), head, copy(span(cos)), copy(span(sin)),
                  heads,  kv_heads, head_dim, eps};
  new (self) Model(std::move(weights), instruction_set(name), threads,
                   cache_bits == 8 ? CacheNumber::byte : CacheNumber::half);
}

void forward(Model& model, const Array<const std::int32_t>& chunks, const Floats& embeds, const Array<float>& logits) {
  if (chunks.ndim() != 2 || chunks.shape(1) != 3) throw std::invalid_argument("chunks: expected [n, 3]");
  std::vector<Chunk> read;
  for (std::size_t i = 0; i < chunks.size(); i += 3)
    read.push_back({chunks.data()[i], chunks.data()[i + 1], chunks.data()[i + 2]});
  const nb::gil_scoped_release unlocked;
  model.forward(read, span(embeds), span(logits));
}

// Single operations, for tests: an instruction set against the specification.

int whole_lanes(const Array<float>& x) {
  require(x.size() % lanes == 0, "expected a multiple of 16 values");
  return static_cast<int>(x.size());
}

void product(const Operations& operations, const Matrix& matrix, const Floats& x, const Array<float>& out) {
  const FloatMode mode;
  const MatrixView view = matrix.view();
  const std::size_t columns = static_cast<std::size_t>(matrix.columns()), rows = x.size() / columns;
  require(x.size() == rows * columns && out.size() == rows * static_cast<std::size_t>(view.rows), "sizes do not fit");
  const int value_stride = (view.columns + unit_inputs - 1) / unit_inputs * unit_inputs;
  std::vector<std::int8_t> values(rows * static_cast<std::size_t>(value_stride));
  std::vector<float> scales(rows * static_cast<std::size_t>(view.activation_blocks()));
  std::vector<std::int32_t> starts(rows * static_cast<std::size_t>(view.starts()));
  const int whole = (view.columns + lanes - 1) / lanes * lanes;
  std::vector<float> floats(rows * static_cast<std::size_t>(whole));
  const ActivationsView to{values.data(), scales.data(), starts.data(),  value_stride, view.activation_blocks(),
                           view.starts(), floats.data(), whole};
  for (std::size_t row = 0; row < rows; ++row)
    operations.quantize(padded(std::span(x.data() + row * columns, columns)).data(), view, to, static_cast<int>(row));
  std::vector<std::uint8_t> scratch(unpack_bytes(view));
  operations.product(view, to, static_cast<int>(rows), 0, view.groups(), out.data(), view.rows, false, scratch.data());
}

void rms_norm(const Operations& operations, const Array<float>& x, const Floats& weight, float eps) {
  const FloatMode mode;
  require(x.size() == weight.size(), "x and weight: expected the same size");
  operations.rms_norm(x.data(), weight.data(), whole_lanes(x), eps, x.data());
}

void rotate(const Operations& operations, const Array<float>& x, const Floats& cos, const Floats& sin, float factor) {
  const FloatMode mode;
  require(whole_lanes(x) == 2 * static_cast<int>(cos.size()) && cos.size() == sin.size(), "sizes do not fit");
  operations.rotate(x.data(), cos.data(), sin.data(), static_cast<int>(x.size()), factor);
}

void silu_mul(const Operations& operations, const Array<float>& gate, const Floats& up) {
  const FloatMode mode;
  require(gate.size() == up.size(), "gate and up: expected the same size");
  operations.silu_mul(gate.data(), up.data(), whole_lanes(gate));
}

void exp_in_place(const Operations& operations, const Array<float>& x) {
  const FloatMode mode;
  operations.exp(x.data(), whole_lanes(x));
}

void dot(const Operations& operations, const Floats& x, const Floats& rows, const Array<float>& out) {
  const FloatMode mode;
  require(x.size() % lanes == 0 && rows.size() == out.size() * x.size(), "sizes do not fit");
  const int n = static_cast<int>(x.size());
  operations.dot(x.data(), rows.data(), n, static_cast<int>(out.size()), n, out.data());
}

void softmax(const Operations& operations, const Array<float>& scores) {
  const FloatMode mode;
  operations.softmax(scores.data(), whole_lanes(scores));
}

void add_scaled(const Operations& operations, const Array<float>& out, const Floats& x, float factor) {
  const FloatMode mode;
  require(out.size() == x.size(), "x and out: expected the same size");
  operations.add_scaled(out.data(), x.data(), factor, whole_lanes(out));
}

void layer_norm(const Operations& operations, const Array<float>& x, const Floats& weight, const Floats& bias, float eps) {
  const FloatMode mode;
  require(x.size() == weight.size() && x.size() == bias.size(), "x, weight and bias: expected the same size");
  operations.layer_norm(x.data(), weight.data(), bias.data(), static_cast<int>(x.size()), eps, x.data());
}

void gelu(const Operations& operations, const Array<float>& x) {
  const FloatMode mode;
  operations.gelu(x.data(), whole_lanes(x));
}

// What the bytes stand for, and where to: (scale, sum).
std::pair<float, int> weigh(const Operations& operations, const Array<float>& scores, int count, const Floats& value_scales,
                            const Array<std::int8_t>& out) {
  const FloatMode mode;
  require(count > 0 && count <= whole_lanes(scores) && scores.size() == value_scales.size() && scores.size() <= out.size(),
          "sizes do not fit");
  const ByteWeights found = operations.weigh(scores.data(), count, value_scales.data(), out.data(), static_cast<int>(out.size()));
  return {found.scale, found.sum};
}

void to_half(const Operations& operations, const Array<float>& x, const Array<std::uint16_t>& out) {
  const FloatMode mode;
  require(x.size() == out.size(), "x and out: expected the same size");
  operations.to_half(x.data(), out.data(), whole_lanes(x));
}

float to_bytes(const Operations& operations, const Array<float>& x, const Array<std::int8_t>& out) {
  const FloatMode mode;
  require(x.size() == out.size(), "x and out: expected the same size");
  return operations.to_bytes(x.data(), out.data(), whole_lanes(x));
}

std::vector<std::string> names() {
  std::vector<std::string> found;
  for (const Operations* one : instruction_sets()) found.emplace_back(one->name);
  return found;
}

}  // namespace
}  // namespace salmonrun

NB_MODULE(_native, module) {
  using namespace salmonrun;
  nb::set_leak_warnings(false);  // an engine may live until the interpreter ends
  module.def("instruction_sets", &names);
  nb::class_<Matrix>(module, "Matrix")
      .def("__init__", &make_matrix, "packed"_a.noconvert(), "scales"_a.noconvert(), "rows"_a, "columns"_a, "bits"_a,
           "block"_a, "activation_block"_a, "bias"_a = nb::none())
      .def_static("super_blocks", &super_matrix, "packed"_a.noconvert(), "multiples"_a.noconvert(), "scales"_a.noconvert(), "rows"_a,
                  "columns"_a, "bias"_a = nb::none())
      .def_static("nf4", &nf4_matrix, "packed"_a.noconvert(), "scales"_a.noconvert(), "rows"_a, "columns"_a, "block"_a,
                  "bias"_a = nb::none())
      .def_static("bfloat16", &brain_float_matrix, "packed"_a.noconvert(), "rows"_a, "columns"_a, "bias"_a = nb::none())
      .def_static("floats", &float_matrix, "packed"_a.noconvert(), "rows"_a, "columns"_a, "bias"_a = nb::none());
  nb::class_<Mlp>(module, "Mlp")
      .def("__init__", [](Mlp* self, const Matrix& gate, const Matrix& up,
                          const Matrix& down) { new (self) Mlp{gate, up, down}; },
           nb::kw_only(), "gate"_a, "up"_a, "down"_a);
  nb::class_<Mixture>(module, "Mixture")
      .def("__init__", [](Mixture* self, const Floats& router, const std::vector<Mlp>& experts, int per_token,
                          bool normalised, const std::optional<Mlp>& shared, const std::optional<Floats>& shared_gate) {
             new (self) Mixture(make_mixture(router, experts, per_token, normalised, shared, shared_gate));
           },
           nb::kw_only(), "router"_a, "experts"_a, "per_token"_a, "normalised"_a, "shared"_a = nb::none(),
           "shared_gate"_a = nb::none());
  nb::class_<Layer>(module, "Layer")
      .def("__init__", [](Layer* self, const Floats& input_norm, const Matrix& q, const Matrix& k, const Matrix& v,
                          const Matrix& o, const Floats& post_norm, const std::variant<Mlp, Mixture>& mlp,
                          const std::optional<Floats>& q_norm, const std::optional<Floats>& k_norm,
                          std::optional<int> window) {
             new (self) Layer(make_layer(input_norm, q, k, v, o, post_norm, mlp, q_norm, k_norm, window));
           },
           nb::kw_only(), "input_norm"_a, "q"_a, "k"_a, "v"_a, "o"_a, "post_norm"_a, "mlp"_a, "q_norm"_a = nb::none(),
           "k_norm"_a = nb::none(), "window"_a = nb::none());
  nb::class_<Model>(module, "Model")
      .def("__init__", &make_model, nb::kw_only(), "layers"_a, "norm"_a, "head"_a, "cos"_a, "sin"_a, "heads"_a,
           "kv_heads"_a, "head_dim"_a, "eps"_a, "instruction_set"_a, "threads"_a,
           "cache_bits"_a = 16)
      .def("open", [](Model& model) { return model.cache().open(); })
      .def("close", [](Model& model, int sequence) { model.cache().close(sequence); })
      .def("length", [](Model& model, int sequence) { return model.cache().length(sequence); })
      .def("truncate", [](Model& model, int sequence, int length) { model.cache().truncate(sequence, length); })
      .def("fork", [](Model& model, int source, int target, int length) { model.cache().fork(source, target, length); })
      .def("forward", &forward, "chunks"_a, "embeds"_a.noconvert(), "logits"_a.noconvert())
      .def_prop_ro("instruction_set", [](const Model& model) { return model.operations().name; })
      .def_prop_ro("threads", &Model::threads)
      .def_prop_ro("max_length", [](const Model& model) { return model.weights().max_length(); })
      .def_prop_ro("cache_bytes", [](Model& model) { return model.cache().bytes(); });
  bind_encoder(module);
  nb::class_<Operations>(module, "Operations")
      .def_static("of", &instruction_set, nb::rv_policy::reference)
      .def("product", &product)
      .def("rms_norm", &rms_norm)
      .def("rotate", &rotate)
      .def("silu_mul", &silu_mul)
      .def("exp", &exp_in_place)
      .def("dot", &dot)
      .def("softmax", &softmax)
      .def("add_scaled", &add_scaled)
      .def("layer_norm", &layer_norm)
      .def("gelu", &gelu)
      .def("weigh", &weigh)
      .def("to_half", &to_half)
      .def("to_bytes", &to_bytes);
}

// What Python sees of the encoders.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>

#include "binding.h"
#include "encoder.h"
#include "instruction_sets.h"
#include "require.h"

using namespace nanobind::literals;

namespace salmonrun {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using KeptBytes = nb::ndarray<std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
// Rows may overlap, or lie apart: only what is in a row is contiguous.
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Counts = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

LayerNorm make_norm(const Floats& weight, const Floats& bias, float eps) {
  require(weight.size() > 0, "a layer norm of no values");
  require_size(bias.size(), weight.size(), "bias");
  return {copy(span(weight)), copy(span(bias)), eps};
}

Gate make_gate(const Floats& weight, const Floats& bias, const Floats& scale) {
  require(weight.ndim() == 2 && weight.shape(0) == 2, "gate.weight: expected [2, head_dim]");
  const std::size_t width = weight.shape(1), whole = (width + lanes - 1) / lanes * lanes;
  std::vector<float> rows(2 * whole);
  for (std::size_t i = 0; i < 2; ++i) std::copy_n(weight.data() + i * width, width, rows.data() + i * whole);
  return {std::move(rows), copy(span(bias)), copy(span(scale)), static_cast<int>(width)};
}

void make_encoder(Encoder* self, const std::vector<EncoderLayer>& layers, int heads, bool norm_first,
                  const std::optional<LayerNorm>& norm, const std::optional<Floats>& bias_by_distance, const std::string& name,
                  int threads) {
  require(threads > 0, std::to_string(threads) + " threads; expected at least 1");
  EncoderWeights weights{layers, heads, norm_first, norm, copy(span(bias_by_distance))};
  new (self) Encoder(std::move(weights), instruction_set(name), threads);
}

// The bytes of an array [layers, positions, position_bytes].
template <class Array>
auto kept(const Encoder& encoder, const Array& array) {
  require(array.shape(0) == encoder.weights().layers.size() && array.shape(2) == static_cast<std::size_t>(encoder.position_bytes()),
          "past and present: expected [" + std::to_string(encoder.weights().layers.size()) + ", positions, " +
              std::to_string(encoder.position_bytes()) + "]");
  return std::span(array.data(), array.size());
}

void forward(Encoder& encoder, const Array<float>& x, const Counts& counts, const std::vector<Bytes>& past,
             const std::vector<KeptBytes>& present) {
  require_size(past.size(), counts.size(), "past");
  if (!present.empty()) require_size(present.size(), counts.size(), "present");
  std::vector<Encoder::Part> parts;
  for (std::size_t i = 0; i < counts.size(); ++i)
    parts.push_back({counts.data()[i], kept(encoder, past[i]), present.empty() ? std::span<std::uint8_t>{} : kept(encoder, present[i])});
  const nb::gil_scoped_release unlocked;
  encoder.forward(parts, span(x));
}

void product(Encoder& encoder, const Matrix& matrix, const Rows& x, const Array<float>& out, bool gelu) {
  const std::size_t rows = x.shape(0), columns = x.shape(1);
  require(columns == static_cast<std::size_t>(matrix.columns()), "x has " + std::to_string(columns) + " columns, expected " + std::to_string(matrix.columns()));
  require(x.stride(1) == 1 || columns == 1, "the rows of x: expected contiguous values");
  require_size(out.size(), rows * static_cast<std::size_t>(matrix.rows()), "out");
  const nb::gil_scoped_release unlocked;
  encoder.product(matrix, x.data(), x.stride(0), static_cast<int>(rows), out.data(), gelu);
}

void normalize(Encoder& encoder, const LayerNorm& norm, const Array<float>& x) {
  const nb::gil_scoped_release unlocked;
  encoder.normalize(norm, span(x));
}

void gelu(Encoder& encoder, const Array<float>& x) {
  const nb::gil_scoped_release unlocked;
  encoder.gelu(span(x));
}

}  // namespace

void bind_encoder(nb::module_& module) {
  nb::class_<Linear>(module, "Linear")
      .def("__init__", [](Linear* self, const Matrix& up, const std::optional<Matrix>& down) { new (self) Linear{up, down}; },
           "up"_a, "down"_a = nb::none());
  nb::class_<LayerNorm>(module, "LayerNorm")
      .def("__init__", [](LayerNorm* self, const Floats& weight, const Floats& bias, float eps) { new (self) LayerNorm(make_norm(weight, bias, eps)); },
           "weight"_a, "bias"_a, "eps"_a);
  nb::class_<Gate>(module, "Gate")
      .def("__init__", [](Gate* self, const Floats& weight, const Floats& bias, const Floats& scale) { new (self) Gate(make_gate(weight, bias, scale)); },
           "weight"_a, "bias"_a, "scale"_a);
  nb::class_<EncoderLayer>(module, "EncoderLayer")
      .def("__init__", [](EncoderLayer* self, const Linear& q, const Linear& k, const Linear& v, const Linear& out,
                          const Linear& fc1, const Linear& fc2, const LayerNorm& attention_norm, const LayerNorm& mlp_norm,
                          const std::optional<Gate>& gate) {
             new (self) EncoderLayer{q, k, v, out, fc1, fc2, attention_norm, mlp_norm, gate};
           },
           nb::kw_only(), "q"_a, "k"_a, "v"_a, "out"_a, "fc1"_a, "fc2"_a, "attention_norm"_a, "mlp_norm"_a, "gate"_a = nb::none());
  nb::class_<Encoder>(module, "Encoder")
      .def("__init__", &make_encoder, nb::kw_only(), "layers"_a, "heads"_a, "norm_first"_a, "norm"_a = nb::none(),
           "bias_by_distance"_a = nb::none(), "instruction_set"_a, "threads"_a)
      .def("forward", &forward, "x"_a.noconvert(), "counts"_a.noconvert(), "past"_a, "present"_a.noconvert())
      .def("product", &product, "matrix"_a, "x"_a.noconvert(), "out"_a.noconvert(), "gelu"_a = false)
      .def("normalize", &normalize, "norm"_a, "x"_a.noconvert())
      .def("gelu", &gelu, "x"_a.noconvert())
      .def_prop_ro("dim", [](const Encoder& encoder) { return encoder.weights().dim(); })
      .def_prop_ro("position_bytes", &Encoder::position_bytes)
      .def_prop_ro("instruction_set", [](const Encoder& encoder) { return encoder.operations().name; })
      .def_prop_ro("threads", &Encoder::threads);
}

}  // namespace salmonrun

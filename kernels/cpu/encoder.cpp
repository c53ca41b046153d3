#include "encoder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "float_mode.h"
#include "require.h"

namespace salmonrun {
namespace {

// Rows that go through the products together, at most: so many that weights are read seldom, so few that what lies between
// two products stays in a cache. A row's result does not depend on its company.
constexpr int slice_rows = 288;

// Calls run(first, rows) for slices of about the same size, of whole tiles.
template <class Run>
void over_slices(int rows, Run&& run) {
  constexpr int tile_rows = 6;
  const int slices = (rows + slice_rows - 1) / slice_rows, tiles = (rows + tile_rows - 1) / tile_rows;
  const int step = (tiles + slices - 1) / slices * tile_rows;
  for (int first = 0; first < rows; first += step) run(first, std::min(step, rows - first));
}

constexpr int most_positions = 65535;  // that integer sums over positions have room for

}  // namespace

Encoder::Encoder(EncoderWeights weights, const Operations& operations, int threads)
    : weights_((weights.check(), std::move(weights))),
      operations_(operations),
      pool_(threads),
      attention_(weights_, operations, pool_),
      products_(operations, pool_),
      thin_(operations, pool_),
      hidden_(operations, pool_),
      dim_(padded(weights_.dim())) {
  for (const EncoderLayer& layer : weights_.layers)
    for (const Linear* linear : layer.linears()) {
      products_.expect(linear->first());
      thin_.expect(linear->up);
      hidden_.expect(linear->first());
    }
  normed_.reserve(size(threads, dim_));
}

void Encoder::forward(std::span<const Part> parts, std::span<float> x) {
  std::vector<Recording> recordings = recordings_of(parts, x.size());
  const FloatMode mode;
  const int dim = weights_.dim(), rows = static_cast<int>(x.size() / static_cast<std::size_t>(dim));
  if (!rows) return;
  for (Buffer<float>* buffer : {&x_, &q_, &attended_}) buffer->reserve(size(rows, dim_));
  for (int i = 0; i < rows; ++i) std::copy_n(x.data() + size(i, dim), dim, row_of(x_, i, dim_));
  for (std::size_t i = 0; i < weights_.layers.size(); ++i) run_layer(i, parts, recordings);
  if (weights_.norm) normalize_rows(*weights_.norm, 0, rows);
  for (int i = 0; i < rows; ++i) std::copy_n(row_of(x_, i, dim_), dim, x.data() + size(i, dim));
}

// Checks all sizes.
std::vector<Recording> Encoder::recordings_of(std::span<const Part> parts, std::size_t values) const {
  const std::size_t layer_bytes = weights_.layers.size() * static_cast<std::size_t>(position_bytes());
  const int most = weights_.bias_by_distance.empty() ? most_positions : std::min(most_positions, weights_.longest());
  std::vector<Recording> recordings;
  std::size_t rows = 0;
  for (const Part& part : parts) {
    require(part.count > 0, std::to_string(part.count) + " positions of a recording; expected at least 1");
    require(part.past.size() % layer_bytes == 0, "past: " + std::to_string(part.past.size()) + " bytes, expected a multiple of " + std::to_string(layer_bytes));
    const std::size_t past = part.past.size() / layer_bytes, positions = past + static_cast<std::size_t>(part.count);
    require(positions <= static_cast<std::size_t>(most), std::to_string(positions) + " positions of a recording; the encoder has room for " + std::to_string(most));
    if (!part.present.empty()) require_size(part.present.size(), positions * layer_bytes, "present");
    recordings.push_back({static_cast<int>(rows), part.count, static_cast<int>(past), nullptr});
    rows += static_cast<std::size_t>(part.count);
  }
  require_size(values, rows * static_cast<std::size_t>(weights_.dim()), "x");
  return recordings;
}

void Encoder::run_layer(std::size_t index, std::span<const Part> parts, std::vector<Recording>& recordings) {
  const EncoderLayer& layer = weights_.layers[index];
  const int rows = recordings.back().first + recordings.back().count;
  begin_layer(index, parts, recordings);
  over_slices(rows, [&](int first, int count) { project(layer, recordings, first, count); });
  attention_.attend(recordings, layer.gate ? &*layer.gate : nullptr, q_.data(), attended_.data(), dim_);
  over_slices(rows, [&](int first, int count) { finish(layer, first, count); });
}

// Where the layer keeps keys and values, those of the past in front.
void Encoder::begin_layer(std::size_t index, std::span<const Part> parts, std::vector<Recording>& recordings) {
  const auto bytes = static_cast<std::size_t>(position_bytes());
  std::size_t unkept = 0;
  for (const Recording& recording : recordings) unkept += static_cast<std::size_t>(recording.positions()) * bytes;
  kept_.reserve(unkept);
  std::uint8_t* at = kept_.data();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Recording& recording = recordings[i];
    const std::size_t past = static_cast<std::size_t>(recording.past) * bytes, all = static_cast<std::size_t>(recording.positions()) * bytes;
    recording.kept = parts[i].present.empty() ? at : parts[i].present.data() + index * all;
    at += all;
    if (past) std::memcpy(recording.kept, parts[i].past.data() + index * past, past);
  }
}

// Queries of a slice, and its keys and values, which are kept.
void Encoder::project(const EncoderLayer& layer, std::span<const Recording> recordings, int first, int rows) {
  for (Buffer<float>* buffer : {&k_, &v_}) buffer->reserve(size(slice_rows, dim_));
  quantize(weights_.norm_first ? &layer.attention_norm : nullptr, first, rows, layer.q.first());
  float* q = row_of(q_, first, dim_);
  if (layer.q.down || layer.k.down || layer.v.down) {
    linear(products_, layer.q, rows, q, dim_, false);
    linear(products_, layer.k, rows, k_.data(), dim_, false);
    linear(products_, layer.v, rows, v_.data(), dim_, false);
  } else {
    products_.product(std::array<Products::Output, 3>{{{&layer.q.up, q, dim_}, {&layer.k.up, k_.data(), dim_}, {&layer.v.up, v_.data(), dim_}}},
                      rows, false);
  }
  pool_.parallel(rows, [&](int i, int thread) {
    const int row = first + i;
    const auto behind = std::upper_bound(recordings.begin(), recordings.end(), row,
                                         [](int wanted, const Recording& recording) { return wanted < recording.first; });
    const Recording& own = *std::prev(behind);
    const int position = own.past + row - own.first;
    attention_.keep(row_of(k_, i, dim_), row_of(v_, i, dim_), own.kept + size(position, position_bytes()), thread);
  });
}

// All that follows the attention, of a slice.
void Encoder::finish(const EncoderLayer& layer, int first, int rows) {
  float* x = row_of(x_, first, dim_);
  products_.quantize(row_of(attended_, first, dim_), dim_, rows, layer.out.first());
  linear(products_, layer.out, rows, x, dim_, true);
  if (!weights_.norm_first) normalize_rows(layer.attention_norm, first, rows);
  quantize(weights_.norm_first ? &layer.mlp_norm : nullptr, first, rows, layer.fc1.first());
  (layer.fc1.down ? narrow(products_, layer.fc1, rows) : products_).product(layer.fc1.up, rows, operations_.gelu, layer.fc2.first(), hidden_);
  linear(hidden_, layer.fc2, rows, x, dim_, true);
  if (!weights_.norm_first) normalize_rows(layer.mlp_norm, first, rows);
}

// Rows of x_, through a norm if there is one, as the inputs of a matrix.
void Encoder::quantize(const LayerNorm* norm, int first, int rows, const Matrix& matrix) {
  if (!norm) return products_.quantize(row_of(x_, first, dim_), dim_, rows, matrix);
  const MatrixView view = matrix.view();
  const ActivationsView out = products_.activations(rows, view);
  pool_.parallel(rows, [&](int row, int thread) {
    float* normed = row_of(normed_, thread, dim_);
    operations_.layer_norm(row_of(x_, first + row, dim_), norm->weight.data(), norm->bias.data(), norm->dim(), norm->eps, normed);
    operations_.quantize(normed, view, out, row);
  });
}

// Of the rows that were quantized last by `from`.
void Encoder::linear(Products& from, const Linear& linear, int rows, float* out, int stride, bool add) {
  (linear.down ? narrow(from, linear, rows) : from).product(std::array<Products::Output, 1>{{{&linear.up, out, stride}}}, rows, add);
}

// What lies between two thin matrices.
Products& Encoder::narrow(Products& from, const Linear& linear, int rows) {
  const int width = padded(linear.down->rows());
  between_.reserve(size(slice_rows, width));
  for (int row = 0; row < rows; ++row) std::fill_n(row_of(between_, row, width), width, 0.0f);
  from.product(std::array<Products::Output, 1>{{{&*linear.down, between_.data(), width}}}, rows, false);
  thin_.quantize(between_.data(), width, rows, linear.up);
  return thin_;
}

void Encoder::normalize_rows(const LayerNorm& norm, int first, int rows) {
  pool_.parallel(rows, [&](int i, int) {
    float* row = row_of(x_, first + i, dim_);
    operations_.layer_norm(row, norm.weight.data(), norm.bias.data(), norm.dim(), norm.eps, row);
  });
}

void Encoder::product(const Matrix& matrix, const float* x, std::ptrdiff_t stride, int rows, float* out, bool gelu) {
  const FloatMode mode;
  const MatrixView view = matrix.view();
  require(view.floats(), "a matrix that takes quantized inputs; these products are of floats");
  // Rows are read where they lie: they may overlap, as those of a convolution do.
  const ActivationsView inputs{nullptr, nullptr, nullptr, 0, 0, 0, const_cast<float*>(x), stride};
  // Pieces of rows and of outputs: there may be few of either.
  constexpr int piece_rows = 96;
  const int pieces = (rows + piece_rows - 1) / piece_rows, group_pieces = (view.groups() + product_groups - 1) / product_groups;
  pool_.parallel(pieces * group_pieces, [&](int i, int) {
    const int first = i % pieces * piece_rows, group = i / pieces * product_groups;
    operations_.product(view, inputs.from(first), std::min(piece_rows, rows - first), group,
                        std::min(product_groups, view.groups() - group), out + size(first, view.rows), view.rows, false, nullptr);
  });
  if (gelu) this->gelu({out, size(rows, view.rows)});
}

void Encoder::normalize(const LayerNorm& norm, std::span<float> x) {
  const FloatMode mode;
  const auto dim = static_cast<std::size_t>(norm.dim());
  require_size(x.size() % dim, 0, "x behind its last row");
  pool_.parallel(static_cast<int>(x.size() / dim), [&](int i, int) {
    float* row = x.data() + size(i, norm.dim());
    operations_.layer_norm(row, norm.weight.data(), norm.bias.data(), norm.dim(), norm.eps, row);
  });
}

void Encoder::gelu(std::span<float> x) {
  const FloatMode mode;
  constexpr std::size_t piece = 4096;
  const std::size_t whole = x.size() / lanes * lanes;
  pool_.parallel(static_cast<int>((whole + piece - 1) / piece), [&](int i, int) {
    const std::size_t begin = static_cast<std::size_t>(i) * piece;
    operations_.gelu(x.data() + begin, static_cast<int>(std::min(piece, whole - begin)));
  });
  float rest[lanes] = {};
  std::copy(x.begin() + static_cast<std::ptrdiff_t>(whole), x.end(), rest);
  operations_.gelu(rest, lanes);
  std::copy_n(rest, x.size() - whole, x.begin() + static_cast<std::ptrdiff_t>(whole));
}

}  // namespace salmonrun

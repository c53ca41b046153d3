#include "products.h"

namespace salmonrun {
namespace {

constexpr int value_gap = 64;  // bytes between rows, which would share cache sets where their size is a power of two

constexpr int piece_outputs = 128;

// Of the outputs of a matrix, whole blocks of what the next one's scales are for.
int piece_for(const MatrixView& next) {
  if (next.takes_floats() || next.brain_floats()) return piece_outputs;
  return (piece_outputs + next.activation_block - 1) / next.activation_block * next.activation_block;
}

}  // namespace

void Products::expect(const Matrix& matrix) {
  const MatrixView view = matrix.view();
  if (!view.scales) return;
  unpack_stride_ = std::max(unpack_stride_, unpack_bytes(view));
  unpacked_.reserve(unpack_stride_ * static_cast<std::size_t>(pool_.threads()));
}

ActivationsView Products::activations(int rows, const MatrixView& matrix) {
  if (matrix.takes_floats()) {
    const int whole = (matrix.columns + lanes - 1) / lanes * lanes, stride = whole + value_gap / static_cast<int>(sizeof(float));
    floats_.reserve(size(rows, stride));
    return {nullptr, nullptr, nullptr, 0, 0, 0, floats_.data(), stride};
  }
  if (matrix.brain_floats()) {
    const int stride = 2 * matrix.columns + value_gap;
    values_.reserve(size(rows, stride));
    return {values_.data(), nullptr, nullptr, stride, 0, 0, nullptr, 0};
  }
  const int value_stride = matrix.columns + value_gap;
  values_.reserve(size(rows, value_stride));
  value_scales_.reserve(size(rows, matrix.activation_blocks()));
  starts_.reserve(size(rows, matrix.blocks()));
  return {values_.data(), value_scales_.data(), starts_.data(), value_stride, matrix.activation_blocks(), matrix.blocks(),
          nullptr, 0};
}

void Products::quantize(const float* x, int stride, int rows, const Matrix& matrix) {
  const MatrixView view = matrix.view();
  const ActivationsView out = activations(rows, view);
  pool_.parallel(rows, [&](int row, int) { operations_.quantize(x + size(row, stride), view, out, row); });
}

void Products::product(std::span<const Output> outputs, int rows, bool add) {
  const ActivationsView x = activations(rows, outputs.front().matrix->view());
  over_groups(outputs.size(), [&](std::size_t i) { return outputs[i].matrix->view().groups(); },
              [&](std::size_t i, int group, int groups, int thread) {
                const Output& output = outputs[i];
                operations_.product(output.matrix->view(), x, rows, group, groups, output.out, output.stride, add,
                                    unpack_scratch(thread));
              });
}

void Products::product(const Matrix& matrix, int rows, void (*elementwise)(float* x, int n), const Matrix& next, Products& to) {
  const MatrixView from = matrix.view(), into = next.view();
  const ActivationsView x = activations(rows, from), out = to.activations(rows, into);
  const int piece = piece_for(into);
  pieces_.reserve(size(rows * pool_.threads(), piece));
  pool_.parallel((into.columns + piece - 1) / piece, [&](int i, int thread) {
    const int column = i * piece, columns = std::min(piece, into.columns - column), group = column / lanes;
    const int groups = std::min(piece / lanes, from.groups() - group);
    MatrixView quantized = into;
    quantized.columns = columns;
    float* outputs = row_of(pieces_, rows * thread, piece);
    // Products write where row 0 has output 0.
    operations_.product(from, x, rows, group, groups, outputs - column, piece, false, unpack_scratch(thread));
    for (int row = 0; row < rows; ++row) {
      float* own = outputs + size(row, piece);
      if (column + columns > from.rows) std::fill(own + std::max(0, from.rows - column), own + piece, 0.0f);
      elementwise(own, columns + (-columns & (lanes - 1)));
      operations_.quantize(own, quantized, out.behind(into, column), row);
    }
  });
}

}  // namespace salmonrun

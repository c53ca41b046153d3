#include "products.h"

namespace salmonrun {
namespace {

constexpr int value_gap = 64;  // bytes between rows, which would share cache sets where their size is a power of two

constexpr int piece_inputs = 128;  // whole blocks of most matrices

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
  starts_.reserve(size(rows, matrix.starts()));
  return {values_.data(), value_scales_.data(), starts_.data(), value_stride, matrix.activation_blocks(), matrix.starts(),
          nullptr, 0};
}

void Products::quantize(const float* x, int stride, int rows, const Matrix& matrix) {
  const MatrixView view = matrix.view();
  const ActivationsView out = activations(rows, view);
  pool_.parallel(rows, [&](int row, int) { operations_.quantize(x + size(row, stride), view, out, row); });
}

void Products::product(std::span<const Output> outputs, int rows, bool add) {
  const ActivationsView x = activations(rows, outputs.front().matrix->view());
  over_groups(outputs.size(), product_groups, [&](std::size_t i) { return outputs[i].matrix->view().groups(); },
              [&](std::size_t i, int group, int groups, int thread) {
                const Output& output = outputs[i];
                operations_.product(output.matrix->view(), x, rows, group, groups, output.out, output.stride, add,
                                    unpack_scratch(thread));
              });
}

int Products::groups_of_inputs(const MatrixView& matrix) {
  if (!matrix.scales) return piece_inputs / lanes;
  return (piece_inputs + matrix.activation_block - 1) / matrix.activation_block * matrix.activation_block / lanes;
}

void Products::quantize_piece(float* x, int rows, const Matrix& matrix, int group, const ActivationsView& out) const {
  MatrixView view = matrix.view();
  const int piece = groups_of_inputs(view) * lanes, column = group * lanes, filled = std::clamp(matrix.columns() - column, 0, piece);
  const ActivationsView there = out.behind(view, column);
  view.columns = std::min(piece, view.columns - column);
  for (int row = 0; row < rows; ++row) {
    float* own = x + size(row, piece);
    std::fill(own + filled, own + piece, 0.0f);
    operations_.quantize(own, view, there, row);
  }
}

void Products::product(const Matrix& matrix, int rows, void (*elementwise)(float* x, int n), const Matrix& next, Products& to) {
  const MatrixView from = matrix.view(), into = next.view();
  const ActivationsView x = activations(rows, from), out = to.activations(rows, into);
  const int at_once = groups_of_inputs(into), piece = at_once * lanes;
  pieces_.reserve(size(rows * pool_.threads(), piece));
  over_groups(1, at_once, [&](std::size_t) { return from.groups(); }, [&](std::size_t, int group, int groups, int thread) {
    float* outputs = row_of(pieces_, rows * thread, piece);
    operations_.product(from, x, rows, group, groups, outputs - group * lanes, piece, false, unpack_scratch(thread));
    for (int row = 0; row < rows; ++row) elementwise(outputs + size(row, piece), groups * lanes);
    quantize_piece(outputs, rows, next, group, out);
  });
}

}  // namespace salmonrun

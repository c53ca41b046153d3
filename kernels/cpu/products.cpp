#include "products.h"

namespace salmonrun {
namespace {

constexpr int value_gap = 64;  // bytes between rows, which would share cache sets where their size is a power of two

}  // namespace

void Products::expect(const Matrix& matrix) {
  const MatrixView view = matrix.view();
  if (view.bits != 4 || view.nf4()) return;
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

}  // namespace salmonrun

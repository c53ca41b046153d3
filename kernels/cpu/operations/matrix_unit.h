// Products of many rows on a matrix unit, V::Unit, which multiplies up to 16 rows of 64 bytes by 64 bytes of 16 outputs at once.
//
// It adds up integers, exactly; the float operations, and their order, are those of `tile` in product.h. Layout t16 is what the
// unit takes: 16 lines of unpacked weights are 64 inputs of 16 outputs, four neighbouring inputs of each output together.
#pragma once

#include "operations.h"
#include "operations/store.h"

namespace {

using namespace salmonrun;

constexpr int unit_rows = 16;  // that it takes at once
constexpr int unit_inputs = 64;

// The unit's registers: sums and weights of up to two groups, and activations.
constexpr int unit_sums[] = {0, 1}, unit_weights[] = {2, 3}, unit_activations = 4;

template <class V>
void shape_unit(int rows, int inputs) {
  typename V::Unit::Shapes shapes;
  shapes.set(unit_activations, rows, inputs);
  for (int r = 0; r < 2; ++r) {
    shapes.set(unit_sums[r], rows, lanes * 4);
    shapes.set(unit_weights[r], inputs / 4, lanes * 4);
  }
  V::Unit::configure(shapes);
}

template <class Unit, int R>
void add_products(const std::uint8_t* weights) {
  Unit::template load<unit_weights[R]>(weights, lanes * 4);
  Unit::template dot<unit_sums[R], unit_activations, unit_weights[R]>();
}

// The integer sums of one block, of R groups by as many rows as the unit has been shaped for.
template <class Unit, int R>
void sum_block_on_unit(const std::uint8_t* const* weights, const std::int8_t* x, std::ptrdiff_t stride, int block,
                       int inputs, std::int32_t (&sums)[R][unit_rows][lanes]) {
  Unit::template zero<unit_sums[0]>();
  if constexpr (R == 2) Unit::template zero<unit_sums[1]>();
  for (int i = 0; i < block; i += inputs) {
    Unit::template load<unit_activations>(x + i, stride);
    add_products<Unit, 0>(weights[0] + i * lanes);
    if constexpr (R == 2) add_products<Unit, 1>(weights[1] + i * lanes);
  }
  Unit::template store<unit_sums[0]>(sums[0], lanes * 4);
  if constexpr (R == 2) Unit::template store<unit_sums[1]>(sums[1], lanes * 4);
}

// R groups by `rows` rows from `row` on; `packed` are unpacked weights, a byte each.
template <class V, int R>
void unit_tile(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int row, int rows, int group,
               float* out, std::ptrdiff_t stride, bool add) {
  using F = typename V::F;
  const std::uint8_t* weights[R];
  const std::uint16_t* weight_scales[R];
  for (int r = 0; r < R; ++r) {
    weights[r] = packed + std::ptrdiff_t{r} * m.columns * lanes;
    weight_scales[r] = m.scales + std::ptrdiff_t{group + r} * m.blocks() * lanes;
  }
  const std::int8_t* values = x.values + row * x.value_stride;
  const float* scales = x.scales + row * x.scale_stride;
  const std::int32_t* starts = x.starts + row * x.start_stride;
  const int inputs = m.block < unit_inputs ? m.block : unit_inputs;

  alignas(64) std::int32_t sums[R][unit_rows][lanes];
  alignas(64) float part[R][unit_rows][lanes], total[R][unit_rows][lanes] = {};
  const int blocks = m.blocks(), blocks_a_scale = m.activation_block / m.block;
  for (int block = 0, scale = 0; block < blocks; ++scale) {
    const int begin = block, end = block + blocks_a_scale < blocks ? block + blocks_a_scale : blocks;
    for (; block < end; ++block) {
      sum_block_on_unit<typename V::Unit, R>(weights, values, x.value_stride, m.block, inputs, sums);
      for (int r = 0; r < R; ++r) {
        const F weight_scale = V::load_half(weight_scales[r] + block * lanes);
        for (int t = 0; t < rows; ++t) {
          const auto start = V::set_integer(starts[t * x.start_stride + block]);
          const F sum = V::to_float(V::add(start, sums[r][t]));
          const F before = block == begin ? V::set(0.0f) : V::load(part[r][t]);
          V::store(part[r][t], V::fma(sum, weight_scale, before));
        }
        weights[r] += m.block * lanes;
      }
      values += m.block;
    }
    for (int t = 0; t < rows; ++t) {
      const F activation_scale = V::set(scales[t * x.scale_stride + scale]);
      for (int r = 0; r < R; ++r)
        V::store(total[r][t], V::fma(V::load(part[r][t]), activation_scale, V::load(total[r][t])));
    }
  }
  for (int t = 0; t < rows; ++t)
    for (int r = 0; r < R; ++r) store_output<V>(m, V::load(total[r][t]), group + r, out + (row + t) * stride, add);
}

// `count` groups by all rows, which are dealt out evenly: the unit takes as long as it has rows.
template <class V>
void unit_product(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int rows, int group, int count,
                  float* out, std::ptrdiff_t stride, bool add) {
  const int tiles = (rows + unit_rows - 1) / unit_rows;
  for (int i = 0; i < tiles; ++i) {
    const int row = rows * i / tiles, own = rows * (i + 1) / tiles - row;
    shape_unit<V>(own, m.block < unit_inputs ? m.block : unit_inputs);
    const std::uint8_t* weights = packed;
    int g = 0;
    for (; g + 2 <= count; g += 2, weights += std::ptrdiff_t{2} * m.columns * lanes)
      unit_tile<V, 2>(m, weights, x, row, own, group + g, out, stride, add);
    if (g < count) unit_tile<V, 1>(m, weights, x, row, own, group + g, out, stride, add);
  }
  V::Unit::release();
}

}  // namespace

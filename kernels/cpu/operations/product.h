// Products of quantized rows with a quantized matrix, for any instruction set V.
//
// A tile is R groups of 16 outputs by T rows. Its order of float operations, for every output, whatever R and T:
//   out = 0; for each block of the activations: part = 0; for each block of the weights in it:
//     part = fma(integer sum, weight scale, part);  out = fma(part, activation scale, out)
// The integer sums start at minus the zero point times the sum of the activations, which is why weights are taken unsigned
// and need no correction.
#pragma once

#include "operations.h"
#include "operations/brain_floats.h"
#include "operations/floats.h"
#include "operations/matrix_unit.h"
#include "operations/nf4.h"
#include "operations/store.h"
#include "operations/sums.h"
#include "operations/super_blocks.h"
#include "operations/unpack.h"

namespace {

using namespace salmonrun;

// `packed` is where the tile's first group begins: in the matrix, or unpacked.
template <class V, int R, int T, int Bits>
void tile(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int row, int group, float* out,
          std::ptrdiff_t stride, bool add) {
  using F = typename V::F;
  const std::ptrdiff_t group_bytes = std::ptrdiff_t{2} * m.columns * Bits;
  const std::uint8_t* weights[R];
  const std::uint16_t* weight_scales[R];
  for (int r = 0; r < R; ++r) {
    weights[r] = packed + r * group_bytes;
    weight_scales[r] = m.scales + std::ptrdiff_t{group + r} * m.blocks() * lanes;
  }
  const std::int8_t* values[T];
  for (int t = 0; t < T; ++t) values[t] = x.values + (row + t) * x.value_stride;
  const float* scales = x.scales + row * x.scale_stride;
  const std::int32_t* starts = x.starts + row * x.start_stride;

  F sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::set(0.0f);
  const int blocks = m.blocks();
  const auto sum_next = [&](int block, typename V::I(&acc)[R][T]) {
    for (int t = 0; t < T; ++t) {
      const typename V::I start = V::set_integer(start_of(m, starts + t * x.start_stride, block));
      for (int r = 0; r < R; ++r) acc[r][t] = start;
    }
    sum_block<V, R, T, Bits>(weights, values, m.block_inputs(block), acc);
    for (int r = 0; r < R; ++r) weights[r] += 2 * m.block * Bits;
    for (int t = 0; t < T; ++t) values[t] += m.block;
  };
  if (m.activation_block == m.block) {  // the same, with fewer registers
    for (int block = 0; block < blocks; ++block) {
      typename V::I acc[R][T];
      sum_next(block, acc);
      for (int r = 0; r < R; ++r) {
        const F weight_scale = V::load_half(weight_scales[r] + block * lanes);
        for (int t = 0; t < T; ++t)
          sum[r][t] = V::fma(V::mul(V::to_float(acc[r][t]), weight_scale), V::set(scales[t * x.scale_stride + block]), sum[r][t]);
      }
    }
  } else {
    const int blocks_a_scale = m.activation_block / m.block;
    for (int block = 0, scale = 0; block < blocks; ++scale) {
      F part[R][T];
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) part[r][t] = V::set(0.0f);
      const int end = block + blocks_a_scale < blocks ? block + blocks_a_scale : blocks;
      for (; block < end; ++block) {
        typename V::I acc[R][T];
        sum_next(block, acc);
        for (int r = 0; r < R; ++r) {
          const F weight_scale = V::load_half(weight_scales[r] + block * lanes);
          for (int t = 0; t < T; ++t) part[r][t] = V::fma(V::to_float(acc[r][t]), weight_scale, part[r][t]);
        }
      }
      for (int t = 0; t < T; ++t) {
        const F activation_scale = V::set(scales[t * x.scale_stride + scale]);
        for (int r = 0; r < R; ++r) sum[r][t] = V::fma(part[r][t], activation_scale, sum[r][t]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) store_output<V>(m, sum[r][t], group + r, out + (row + t) * stride, add);
}

constexpr int nf4 = 0, multiplied = 5, brain_floats = 16, floats = 32;  // "bits" of what are not 4 or 8 plain ones

template <class V, int R, int T, int Bits>
void any_tile(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int row, int group, float* out,
              std::ptrdiff_t stride, bool add) {
  if constexpr (Bits == nf4)
    nf4_tile<V, R, T>(m, packed, x, row, group, out, stride, add);
  else if constexpr (Bits == brain_floats)
    brain_float_tile<V, R, T>(m, packed, x, row, group, out, stride, add);
  else if constexpr (Bits == multiplied)
    super_tile<V, R, T>(m, packed, x, row, group, out, stride, add);
  else if constexpr (Bits == floats)
    float_tile<V, R, T>(m, packed, x, row, group, out, stride, add);
  else
    tile<V, R, T, Bits>(m, packed, x, row, group, out, stride, add);
}

// R groups by `count` rows from `row` on.
template <class V, int R, int Bits, int T = V::tile_rows>
void tile_of(int count, const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int row, int group,
             float* out, std::ptrdiff_t stride, bool add) {
  if (count == T) return any_tile<V, R, T, Bits>(m, packed, x, row, group, out, stride, add);
  if constexpr (T > 1) tile_of<V, R, Bits, T - 1>(count, m, packed, x, row, group, out, stride, add);
}

// R groups by all rows, dealt out to tiles of about the same size.
template <class V, int R, int Bits>
void tiles_of(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int rows, int group, float* out,
              std::ptrdiff_t stride, bool add) {
  const int tiles = (rows + V::tile_rows - 1) / V::tile_rows;
  for (int i = 0; i < tiles; ++i) {
    const int row = rows * i / tiles, end = rows * (i + 1) / tiles;
    tile_of<V, R, Bits>(end - row, m, packed, x, row, group, out, stride, add);
  }
}

template <class V, int Bits>
void product_rows(const MatrixView& m, const std::uint8_t* packed, const ActivationsView& x, int rows, int group,
                  int count, float* out, std::ptrdiff_t stride, bool add) {
  const std::ptrdiff_t group_bytes = std::ptrdiff_t{2} * m.columns * (Bits == nf4 || Bits == multiplied ? 4 : Bits);
  if (rows == 1 && count == 4)  // four independent chains of sums
    return any_tile<V, 4, 1, Bits>(m, packed, x, 0, group, out, stride, add);
  constexpr int at_once = V::tile_groups;
  for (; count >= at_once; count -= at_once, group += at_once, packed += at_once * group_bytes)
    tiles_of<V, at_once, Bits>(m, packed, x, rows, group, out, stride, add);
  if (count) tiles_of<V, 1, Bits>(m, packed, x, rows, group, out, stride, add);
}

constexpr int unpack_from = 16;  // rows; with fewer, unpacking again for each tile costs less than writing bytes

template <class V>
void product(const MatrixView& m, const ActivationsView& x, int rows, int group, int group_count, float* out,
             std::ptrdiff_t stride, bool add, std::uint8_t* scratch) {
  if constexpr (requires { typename V::Unit; })
    if (rows >= unpack_from && m.scales) return unit_product<V>(m, x, rows, group, group_count, out, stride, add, scratch);
  for (const int end = group + group_count; group < end; group += product_groups) {
    const int count = end - group < product_groups ? end - group : product_groups;
    const std::uint8_t* packed = m.packed + group * m.group_bytes();
    if (m.nf4()) {
      product_rows<V, nf4>(m, packed, x, rows, group, count, out, stride, add);
    } else if (m.brain_floats()) {
      product_rows<V, brain_floats>(m, packed, x, rows, group, count, out, stride, add);
    } else if (m.floats()) {
      product_rows<V, floats>(m, packed, x, rows, group, count, out, stride, add);
    } else if (m.bits == 8) {
      product_rows<V, 8>(m, packed, x, rows, group, count, out, stride, add);
    } else if (!V::bytes_are_as_fast || rows < unpack_from) {
      if (m.multiples)
        product_rows<V, multiplied>(m, packed, x, rows, group, count, out, stride, add);
      else
        product_rows<V, 4>(m, packed, x, rows, group, count, out, stride, add);
    } else {
      unpack_lines<V>(m, group, count, [&](std::ptrdiff_t at, typename V::Bytes line) { V::store_line(scratch + at, line); });
      product_rows<V, 8>(m, scratch, x, rows, group, count, out, stride, add);
    }
  }
}

}  // namespace

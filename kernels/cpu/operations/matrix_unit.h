// Products of many rows on a matrix unit, V::Unit, which multiplies up to 16 rows of 64 bytes by 64 bytes of 16 outputs at once.
//
// It adds up integers, exactly; the float operations, and their order, are those of `tile` in product.h. Layout t16 is what the
// unit takes: 16 lines of unpacked weights are 64 inputs of 16 outputs, four neighbouring inputs of each output together. They
// are unpacked as signed bytes, whose sums need no correction for a zero point.
//
// Two tiles of rows by two groups go together, so that the unit has four products for every four lines that it loads. Its sums
// go through memory to where floats are computed; it is asked for those of the next blocks first, so that it may be at them.
#pragma once

#include "operations.h"
#include "operations/store.h"
#include "operations/unpack.h"

namespace {

using namespace salmonrun;

constexpr int unit_rows = 16;  // of a register of the unit
constexpr int unit_blocks = 4;  // of weights, whose sums are scaled together, at most

// The unit's registers: sums of two tiles of rows by two groups, activations of two tiles, weights of two groups.
constexpr int unit_sums[2][2] = {{0, 1}, {2, 3}}, unit_activations[2] = {4, 5}, unit_weights[2] = {6, 7};

// Rows that the unit takes together.
struct UnitRows {
  int first;
  int count[2];  // of the two tiles; 0: there is no second
};

// Blocks of the weights whose sums the unit is asked for together: they share a scale of the activations.
struct UnitStep {
  int block, count, scale;
  bool begins, ends;  // what shares the scale
  bool first, last;   // of the matrix
};

struct alignas(64) UnitScratch {
  std::int32_t sums[2][unit_blocks][2][2][unit_rows][lanes];  // [turn][block][tile][group]
  float part[2][unit_rows][2][lanes], total[2][unit_rows][2][lanes];
};

template <class V>
void shape_unit(const int (&rows)[2], int inputs) {
  typename V::Unit::Shapes shapes;
  for (int i = 0; i < 2; ++i) {
    shapes.set(unit_weights[i], inputs / 4, lanes * 4);
    if (!rows[i]) continue;
    shapes.set(unit_activations[i], rows[i], inputs);
    for (const int sums : unit_sums[i]) shapes.set(sums, rows[i], lanes * 4);
  }
  V::Unit::configure(shapes);
}

// The integer sums of one block, of T tiles of rows by R groups.
template <class Unit, int T, int R>
inline void sum_block_on_unit(const std::int8_t* const (&weights)[2], const std::int8_t* const (&x)[2], std::ptrdiff_t stride,
                              int block, int inputs, std::int32_t (&sums)[2][2][unit_rows][lanes]) {
  Unit::template zero<unit_sums[0][0]>();
  if constexpr (R == 2) Unit::template zero<unit_sums[0][1]>();
  if constexpr (T == 2) Unit::template zero<unit_sums[1][0]>();
  if constexpr (T == 2 && R == 2) Unit::template zero<unit_sums[1][1]>();
  for (int i = 0; i < block; i += inputs) {
    Unit::template load<unit_weights[0]>(weights[0] + i * lanes, lanes * 4);
    Unit::template load<unit_activations[0]>(x[0] + i, stride);
    Unit::template dot<unit_sums[0][0], unit_activations[0], unit_weights[0]>();
    if constexpr (R == 2) {
      Unit::template load<unit_weights[1]>(weights[1] + i * lanes, lanes * 4);
      Unit::template dot<unit_sums[0][1], unit_activations[0], unit_weights[1]>();
    }
    if constexpr (T == 2) {
      Unit::template load<unit_activations[1]>(x[1] + i, stride);
      Unit::template dot<unit_sums[1][0], unit_activations[1], unit_weights[0]>();
      if constexpr (R == 2) Unit::template dot<unit_sums[1][1], unit_activations[1], unit_weights[1]>();
    }
  }
  Unit::template store<unit_sums[0][0]>(sums[0][0], lanes * 4);
  if constexpr (R == 2) Unit::template store<unit_sums[0][1]>(sums[0][1], lanes * 4);
  if constexpr (T == 2) Unit::template store<unit_sums[1][0]>(sums[1][0], lanes * 4);
  if constexpr (T == 2 && R == 2) Unit::template store<unit_sums[1][1]>(sums[1][1], lanes * 4);
}

// T tiles of rows by R groups, of a matrix.
template <class V, int T, int R>
struct UnitTile {
  using F = typename V::F;

  const MatrixView m;
  const ActivationsView x;
  const UnitRows rows;
  const int group;
  float* const out;
  const std::ptrdiff_t stride;
  const bool add;
  UnitScratch& scratch;

  // Float operations with the sums of B blocks.
  template <int B>
  void scale(const UnitStep step, int turn) const {
    F weight_scale[B][R];
    for (int b = 0; b < B; ++b)
      for (int r = 0; r < R; ++r)
        weight_scale[b][r] = V::load_half(m.scales + (std::ptrdiff_t{group + r} * m.blocks() + step.block + b) * lanes);
    for (int i = 0; i < T; ++i) {
      const std::ptrdiff_t first = rows.first + i * rows.count[0];
      const float* scales = x.scales + first * x.scale_stride + step.scale;
      float* to = out + first * stride;
      for (int t = 0; t < rows.count[i]; ++t, scales += x.scale_stride, to += stride) {
        F part[R];
        for (int r = 0; r < R; ++r) part[r] = step.begins ? V::set(0.0f) : V::load(scratch.part[i][t][r]);
        for (int b = 0; b < B; ++b)
          for (int r = 0; r < R; ++r)
            part[r] = V::fma(V::to_float(V::load_sums(scratch.sums[turn][b][i][r][t])), weight_scale[b][r], part[r]);
        if (!step.ends) {
          for (int r = 0; r < R; ++r) V::store(scratch.part[i][t][r], part[r]);
          continue;
        }
        const F activation_scale = V::set(*scales);
        for (int r = 0; r < R; ++r) {
          const F before = step.first ? V::set(0.0f) : V::load(scratch.total[i][t][r]);
          const F total = V::fma(part[r], activation_scale, before);
          if (step.last)
            store_output<V>(m, total, group + r, to, add);
          else
            V::store(scratch.total[i][t][r], total);
        }
      }
    }
  }

  void scale_any(const UnitStep& step, int turn) const {
    if (step.count == 4) return scale<4>(step, turn);
    if (step.count == 3) return scale<3>(step, turn);
    if (step.count == 2) return scale<2>(step, turn);
    scale<1>(step, turn);
  }

  // `packed` are the first group's weights, a signed byte each.
  void run(const std::int8_t* packed) const {
    const int inputs = m.block < unit_inputs ? m.block : unit_inputs, blocks = m.blocks(), blocks_a_scale = m.activation_block / m.block;
    const std::int8_t* weights[2] = {packed, packed + std::ptrdiff_t{m.columns} * lanes};
    const std::int8_t* values[2];
    for (int i = 0; i < 2; ++i) values[i] = x.values + (rows.first + i * rows.count[0]) * x.value_stride;
    UnitStep before{};
    int turn = 0;
    for (int block = 0; block < blocks; turn = 1 - turn) {
      const int scale = block / blocks_a_scale, begin = scale * blocks_a_scale,
                end = begin + blocks_a_scale < blocks ? begin + blocks_a_scale : blocks,
                count = end - block < unit_blocks ? end - block : unit_blocks;
      for (int b = 0; b < count; ++b) {
        sum_block_on_unit<typename V::Unit, T, R>(weights, values, x.value_stride, m.block_inputs(block + b), inputs, scratch.sums[turn][b]);
        for (int i = 0; i < 2; ++i) weights[i] += m.block * lanes, values[i] += m.block;
      }
      V::Unit::finish();
      if (before.count) scale_any(before, 1 - turn);
      before = {block, count, scale, block == begin, block + count == end, scale == 0, end == blocks};
      block += count;
    }
    scale_any(before, 1 - turn);
  }
};

template <class V, int R>
void unit_tiles(const MatrixView& m, const std::int8_t* packed, const ActivationsView& x, const UnitRows& rows, int group, float* out,
                std::ptrdiff_t stride, bool add, UnitScratch& scratch) {
  if (rows.count[1]) return UnitTile<V, 2, R>{m, x, rows, group, out, stride, add, scratch}.run(packed);
  UnitTile<V, 1, R>{m, x, rows, group, out, stride, add, scratch}.run(packed);
}

// The weights of `count` groups as signed bytes, in the order of 8-bit lines.
template <class V>
void unpack_signed(const MatrixView& m, int group, int count, std::int8_t* out) {
  if (m.bits == 8) {
    const std::uint8_t* packed = m.packed + group * m.group_bytes();
    for (std::ptrdiff_t at = 0; at < count * m.group_bytes(); at += 64) V::store_signed(out + at, V::load_bytes(packed + at), 128);
    return;
  }
  const int zero_point = m.multiples ? 128 : 8;
  unpack_lines<V>(m, group, count, [&](std::ptrdiff_t at, typename V::Bytes line) { V::store_signed(out + at, line, zero_point); });
}

// `scratch` has room for unpack_bytes(m).
template <class V>
void unit_product(const MatrixView& m, const ActivationsView& x, int rows, int group, int group_count, float* out,
                  std::ptrdiff_t stride, bool add, std::uint8_t* scratch) {
  const int inputs = m.block < unit_inputs ? m.block : unit_inputs;
  std::int8_t* weights = reinterpret_cast<std::int8_t*>(scratch);
  UnitScratch sums;
  int shaped[2] = {0, 0};
  for (const int end = group + group_count; group < end; group += product_groups) {
    const int count = end - group < product_groups ? end - group : product_groups;
    unpack_signed<V>(m, group, count, weights);
    V::Unit::finish();
    for (UnitRows some{0, {0, 0}}; some.first < rows; some.first += some.count[0] + some.count[1]) {
      const int left = rows - some.first;
      some.count[0] = left < unit_rows ? left : unit_rows;
      some.count[1] = left - some.count[0] < unit_rows ? left - some.count[0] : unit_rows;
      if (some.count[0] != shaped[0] || some.count[1] != shaped[1]) {
        shape_unit<V>(some.count, inputs);
        shaped[0] = some.count[0], shaped[1] = some.count[1];
      }
      for (int g = 0; g < count; g += 2) {
        const std::int8_t* own = weights + std::ptrdiff_t{g} * m.columns * lanes;
        if (g + 2 <= count)
          unit_tiles<V, 2>(m, own, x, some, group + g, out, stride, add, sums);
        else
          unit_tiles<V, 1>(m, own, x, some, group + g, out, stride, add, sums);
      }
    }
  }
  V::Unit::release();
}

}  // namespace

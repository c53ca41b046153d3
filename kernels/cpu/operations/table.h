// The table of operations of an instruction set V.
#pragma once

#include "operations/attention.h"
#include "operations/elementwise.h"
#include "operations/encoder.h"
#include "operations/experts.h"
#include "operations/product.h"

namespace {

template <class V>
constexpr salmonrun::Operations table(const char* name) {
  return {name,         quantize_row<V>, product<V>, rms_norm_row<V>, rotate_head<V>,
          to_half_row<V>, to_bytes_row<V>, silu_mul_row<V>, exp_row<V>, attend<V>,
          dot_rows<V>,  softmax_row<V>,  add_scaled_row<V>, layer_norm_row<V>, gelu_row<V>, weigh_row<V>};
}

}  // namespace

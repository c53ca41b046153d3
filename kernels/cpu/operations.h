// What an instruction set must offer. kernels/reference.py says what each operation computes, to the bit.
//
// These headers are compiled once for each instruction set, with its flags: they use no inline function of the standard
// library that the linker might share between those, and pass plain pointers. Callers see to it that sizes fit:
// rows of floats are padded to whole multiples of `padding`, and what is behind them is zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace salmonrun {

constexpr int lanes = 16;
constexpr int padding = 128;   // floats: rows of activations are whole multiples of it, and so whole blocks of weights
constexpr int unit_inputs = 64;  // that a matrix unit takes at once: it reads the values behind a row's last, if need be
constexpr int page_size = 64;  // positions that lie together in the KV cache
constexpr int super_block = 128, multiple_block = 32;  // inputs that share a scale of int4; that share a multiple of it

// The 16 values that nf4's indices stand for: NF4 in kernels/formats.py.
alignas(64) constexpr float nf4_values[lanes] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

// A matrix in layout t16: see quantize_t16, quantize_super_t16, quantize_nf4_t16, pack_floats_t16 and pack_bfloat16_t16 in kernels/formats.py.
struct MatrixView {
  const std::uint8_t* packed;   // [groups][columns / 32][bits][64]; of floats: [groups][columns][16] in float32;
                                // of bfloat16: [groups][columns / 2][16][2]
  const std::uint16_t* scales;  // of integers: [groups][blocks][16], float16; null: floats, or indices of nf4
  const float* nf4_scales;      // of nf4: the same in float32
  const float* bias;            // [16 groups], or null
  int rows;                     // outputs
  int columns;                  // inputs, filled up to whole blocks; the last super-block may have fewer
  int bits;                     // 4 or 8; 16: bfloat16; 32: floats
  int block;                    // inputs that share a scale of the weights
  int activation_block;         // inputs that share a scale of the activations: a multiple of `block`; nf4: not used
  const std::int8_t* multiples = nullptr;  // of int4 in super-blocks, which `block` is then: [groups][columns / 32][16]

  int groups() const { return (rows + lanes - 1) / lanes; }
  int blocks() const { return (columns + block - 1) / block; }
  int block_inputs(int index) const { return columns - index * block < block ? columns - index * block : block; }
  int start_block() const { return multiples ? multiple_block : block; }
  int starts() const { return columns / start_block(); }
  int activation_blocks() const { return (columns + activation_block - 1) / activation_block; }
  bool nf4() const { return nf4_scales != nullptr; }
  bool floats() const { return bits == 32; }
  bool brain_floats() const { return bits == 16; }
  bool takes_floats() const { return nf4() || floats(); }  // its inputs are not quantized
  std::ptrdiff_t group_bytes() const { return std::ptrdiff_t{2} * columns * bits; }
};

// Rows that are quantized for a matrix; for one that takes floats, the rows as they are.
struct ActivationsView {
  std::int8_t* values;   // [rows][value_stride]: bytes, of super-blocks with zeros up to whole unit_inputs; or those of bfloat16
  float* scales;         // [rows][scale_stride]
  std::int32_t* starts;  // [rows][start_stride]: minus the zero point times the sum, of each start_block() of the inputs
  std::ptrdiff_t value_stride, scale_stride, start_stride;
  float* floats;  // [rows][float_stride]
  std::ptrdiff_t float_stride;

  // The same from input `column` on, where a block of the matrix begins.
  ActivationsView behind(const MatrixView& matrix, int column) const {
    ActivationsView view = *this;
    view.floats += column;
    view.values += column * (matrix.brain_floats() ? 2 : 1);
    if (matrix.scales) view.scales += column / matrix.activation_block, view.starts += column / matrix.start_block();
    return view;
  }

  // The same without the rows before `row`.
  ActivationsView from(std::ptrdiff_t row) const {
    return {values + row * value_stride, scales + row * scale_stride, starts + row * start_stride,
            value_stride, scale_stride, start_stride, floats + row * float_stride, float_stride};
  }
};

// What keys and values are kept as: float16, or signed bytes with a scale for each position of a head.
enum class CacheNumber { half, byte };

// The keys and values of one KV head in one page: keys as [4][head_dim][16 positions], values as [64][head_dim]; behind bytes
// the scales, in float32: [64] of the keys, [64] of the values.
struct AttentionTask {
  const float* q;                    // [group][head_dim], rotated and scaled
  float* out;                        // [group][head_dim]
  const std::uint8_t* const* pages;  // of each page, where this head's keys begin
  float* scores;                     // [group][64 pages], scratch
  CacheNumber number;
  int group;        // query heads that share the KV head
  int head_dim;     // a multiple of 16
  int first, last;  // positions seen
};

struct ByteWeights {
  float scale;
  std::int32_t sum;  // of all bytes
};

struct Operations {
  const char* name;

  // x [padded columns] to row `row` of `out`, zeros behind it.
  void (*quantize)(const float* x, const MatrixView& matrix, const ActivationsView& out, std::ptrdiff_t row);

  // Outputs of `group_count` groups from `group` on, of `rows` rows: out[row * stride + output], or added to that.
  // `scratch` has room for unpack_bytes(matrix).
  void (*product)(const MatrixView& matrix, const ActivationsView& x, int rows, int group, int group_count, float* out,
                  std::ptrdiff_t stride, bool add, std::uint8_t* scratch);

  // x [n], filled up with zeros to whole lanes, to out.
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);

  // Turns a head in place, and multiplies it by `factor`.
  void (*rotate)(float* x, const float* cos, const float* sin, int head_dim, float factor);

  void (*to_half)(const float* x, std::uint16_t* out, int n);  // n: whole lanes
  float (*to_bytes)(const float* x, std::int8_t* out, int n);  // the scale, from -127 to 127 times it; n: whole lanes
  void (*silu_mul)(float* gate, const float* up, int n);       // in place; n: whole lanes
  void (*exp)(float* x, int n);                                // in place; n: whole lanes
  void (*attend)(const AttentionTask& task);

  // Products of x [n] with `count` rows of floats, `stride` apart; n: whole lanes.
  void (*dot)(const float* x, const float* rows, std::ptrdiff_t stride, int count, int n, float* out);

  // n scores to shares of one, in place; what follows them up to whole lanes becomes 0.
  void (*softmax)(float* scores, int n);

  // out[i] + factor * x[i], rounded once; n: whole lanes.
  void (*add_scaled)(float* out, const float* x, float factor, int n);

  // x [n] less its mean, over its standard deviation, to out [n], which may be x; no more than n values are read or written.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int n, float eps, float* out);

  void (*gelu)(float* x, int n);  // in place, with the error function; n: whole lanes

  // n scores to shares of one, times the scales of the values [whole lanes] that they will weigh, as bytes. `out` is filled up
  // to `padded`. The scores are lost. What a byte b stands for: (b + 127) * scale.
  ByteWeights (*weigh)(float* scores, int n, const float* value_scales, std::int8_t* out, int padded);
};

constexpr int product_groups = 4;  // that are unpacked at once, and that a thread takes at once

inline std::size_t unpack_bytes(const MatrixView& matrix) {
  return (std::size_t{product_groups} * static_cast<std::size_t>(matrix.columns) + unit_inputs) * lanes;
}

}  // namespace salmonrun

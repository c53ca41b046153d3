#include "encoder_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "half.h"
#include "operations/brain_floats.h"

namespace salmonrun {
namespace {

// Queries of a head that are answered together: their scores stay in a core's cache.
constexpr int tile_queries = 48;

constexpr int whole_positions = 64;  // that panels are filled up to: what products of bytes take at once, on any unit
constexpr int line = 64;
constexpr std::uint8_t zero = 128;  // of a byte in layout t16

int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// A key [n] to its lane, four inputs in each line.
void pack_key(const std::uint8_t* key, int n, std::uint8_t* lane) {
  int d = 0;
  for (; d + 4 <= n; d += 4, lane += line) {
    std::uint32_t bytes;
    std::memcpy(&bytes, key + d, sizeof bytes);
    bytes ^= 0x80808080u;
    std::memcpy(lane, &bytes, sizeof bytes);
  }
  for (; d < n; ++d) lane[d % 4] = key[d] ^ zero;
}

// The values [n] of four positions to a line of each group of 16 outputs, and to their sums.
void pack_values(const std::uint8_t* const* four, int n, std::uint8_t* lines, std::size_t group_bytes, std::int32_t* sums) {
  for (int begin = 0; begin < n; begin += lanes, lines += group_bytes) {
    const int count = n - begin < lanes ? n - begin : lanes;
    for (int d = 0; d < count; ++d) {
      const int at = begin + d;
      const std::uint32_t bytes = four[0][at] | four[1][at] << 8 | four[2][at] << 16 | static_cast<std::uint32_t>(four[3][at]) << 24;
      const std::uint32_t unsigned_bytes = bytes ^ 0x80808080u;
      std::memcpy(lines + 4 * d, &unsigned_bytes, sizeof unsigned_bytes);
    }
    for (int j = 0; j < 4; ++j)
      for (int d = 0; d < count; ++d) sums[begin + d] += static_cast<std::int8_t>(four[j][begin + d]);
  }
}

std::uint8_t* aligned(std::uint8_t* at) { return at + (-reinterpret_cast<std::uintptr_t>(at) & (line - 1)); }

}  // namespace

EncoderAttention::EncoderAttention(const EncoderWeights& weights, const Operations& operations, ThreadPool& pool)
    : weights_(weights),
      operations_(operations),
      pool_(pool),
      bits_(weights.bits()),
      head_dim_(weights.head_dim()),
      ones_(static_cast<std::size_t>(outputs()), float_to_half(1.0f)),
      scratch_(static_cast<std::size_t>(pool.threads())) {
  if (weights.bias_by_distance.empty()) return;
  const int distances = 2 * weights.longest() - 1;
  bias_stride_ = distances + lanes;
  bias_.resize(size(weights.heads, bias_stride_));
  for (int head = 0; head < weights.heads; ++head)
    std::copy_n(weights.bias_by_distance.data() + size(head, distances), distances, bias_.data() + size(head, bias_stride_));
}

int EncoderAttention::position_bytes() const {
  return bytes() ? 2 * weights_.dim() + 8 * weights_.heads : 8 * weights_.dim();
}

int EncoderAttention::inputs() const {
  if (!bytes()) return brain_floats() ? up_to(head_dim_, 2) : head_dim_;
  return head_dim_ <= 32 ? 32 : up_to(head_dim_, 64);
}

int EncoderAttention::outputs() const { return up_to(head_dim_, lanes); }

void EncoderAttention::keep(const float* keys, const float* values, std::uint8_t* kept, int thread) {
  const auto dim = static_cast<std::size_t>(weights_.dim()), width = static_cast<std::size_t>(head_dim_);
  if (!bytes()) {
    std::memcpy(kept, keys, dim * sizeof(float));
    std::memcpy(kept + dim * sizeof(float), values, dim * sizeof(float));
    return;
  }
  Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
  scratch.queries.reserve(size(tile_queries, up_to(inputs(), lanes)));
  scratch.quantized.reserve(size(tile_queries, inputs()));
  float* head = scratch.queries.data();
  std::fill_n(head, inputs(), 0.0f);
  std::uint8_t* scales = kept + 2 * dim;
  for (const float* from : {keys, values})
    for (std::size_t begin = 0; begin < dim; begin += width, kept += width, scales += sizeof(float)) {
      std::copy_n(from + begin, width, head);
      const float scale = operations_.to_bytes(head, scratch.quantized.data(), outputs());
      std::memcpy(kept, scratch.quantized.data(), width);
      std::memcpy(scales, &scale, sizeof scale);
    }
}

std::size_t EncoderAttention::panel_bytes(int positions) const {
  const int whole = up_to(positions, whole_positions);
  if (!bytes()) return size(whole, inputs() + outputs()) * static_cast<std::size_t>(bits_ / 8);
  return size(whole, inputs() + outputs()) + size(whole, 2 * sizeof(float)) + static_cast<std::size_t>(up_to(outputs(), line)) * sizeof(float);
}

EncoderAttention::Panel EncoderAttention::panel(std::uint8_t* at, int positions) const {
  const int whole = up_to(positions, whole_positions), wide = inputs(), bits = bits_;
  if (!bytes()) {
    std::uint8_t* values = at + size(whole, wide) * static_cast<std::size_t>(bits / 8);
    const int summed = brain_floats() ? up_to(positions, 2) : positions;
    return {{at, nullptr, nullptr, nullptr, positions, wide, bits, wide, wide},
            {values, nullptr, nullptr, nullptr, outputs(), summed, bits, summed, summed},
            nullptr,
            nullptr};
  }
  std::uint8_t* values = at + size(whole, wide);
  auto* value_scales = reinterpret_cast<float*>(values + size(whole, outputs()));
  auto* key_scales = reinterpret_cast<std::uint16_t*>(value_scales + whole);
  auto* sums = reinterpret_cast<float*>(value_scales + 2 * whole);
  return {{at, key_scales, nullptr, nullptr, positions, wide, 8, wide, wide},
          {values, ones_.data(), nullptr, nullptr, outputs(), whole, 8, whole, whole},
          value_scales,
          sums};
}

void EncoderAttention::pack(const Recording& recording, int head, const Panel& panel) const {
  if (bytes()) return pack_bytes(recording, head, panel);
  if (brain_floats()) return pack_floats<std::uint16_t>(recording, head, panel, 2, to_brain_float);
  pack_floats<float>(recording, head, panel, 1, [](float x) { return x; });
}

// `at_once` neighbouring inputs of an output lie together; what fills these up is zero.
template <class Number, class Convert>
void EncoderAttention::pack_floats(const Recording& recording, int head, const Panel& panel, int at_once, Convert convert) const {
  const int positions = recording.positions(), stride = position_bytes();
  auto* keys = reinterpret_cast<Number*>(const_cast<std::uint8_t*>(panel.keys.packed));
  auto* values = reinterpret_cast<Number*>(const_cast<std::uint8_t*>(panel.values.packed));
  const auto place = [&](int output, int input, int inputs) {
    return size(output / lanes, inputs * lanes) + size(input / at_once, lanes * at_once) +
           static_cast<std::size_t>(output % lanes * at_once + input % at_once);
  };
  std::vector<float> row(static_cast<std::size_t>(up_to(outputs(), 2)));
  const auto bytes = static_cast<std::size_t>(head_dim_) * sizeof(float);
  for (int i = 0; i < panel.values.columns; ++i) {
    const std::uint8_t* from = recording.kept + size(i, stride) + size(head, head_dim_) * sizeof(float);
    if (i < positions) {
      std::memcpy(row.data(), from, bytes);
      for (int d = 0; d < panel.keys.columns; ++d) keys[place(i, d, panel.keys.columns)] = convert(row[static_cast<std::size_t>(d)]);
      std::memcpy(row.data(), from + static_cast<std::size_t>(weights_.dim()) * sizeof(float), bytes);
    } else {
      std::fill(row.begin(), row.end(), 0.0f);
    }
    for (int d = 0; d < outputs(); ++d) values[place(d, i, panel.values.columns)] = convert(row[static_cast<std::size_t>(d)]);
  }
}

// What fills a panel up may be anything: queries are zero there, or it is no output, or weighs zeros.
void EncoderAttention::pack_bytes(const Recording& recording, int head, const Panel& panel) const {
  const int positions = recording.positions(), stride = position_bytes(), whole = panel.values.columns, wide = inputs();
  auto* keys = const_cast<std::uint8_t*>(panel.keys.packed);
  auto* values = const_cast<std::uint8_t*>(panel.values.packed);
  auto* key_scales = const_cast<std::uint16_t*>(panel.keys.scales);
  const std::uint8_t* head_keys = recording.kept + size(head, head_dim_);
  const std::uint8_t* head_values = head_keys + weights_.dim();
  const std::uint8_t* head_scales = recording.kept + 2 * weights_.dim() + size(head, sizeof(float));
  for (int i = 0; i < positions; ++i) {
    pack_key(head_keys + size(i, stride), head_dim_, keys + size(i / lanes, wide * lanes) + i % lanes * 4);
    float key_scale;
    std::memcpy(&key_scale, head_scales + size(i, stride), sizeof key_scale);
    std::memcpy(panel.value_scales + i, head_scales + size(i, stride) + size(weights_.heads, sizeof(float)), sizeof(float));
    key_scales[i] = float_to_half(key_scale);
  }
  std::fill(panel.value_scales + positions, panel.value_scales + whole, 0.0f);
  std::vector<std::int32_t> sums(static_cast<std::size_t>(outputs()));
  const std::vector<std::uint8_t> zeros(static_cast<std::size_t>(head_dim_));
  for (int i = 0; i < whole; i += 4) {
    const std::uint8_t* four[4];
    for (int j = 0; j < 4; ++j) four[j] = i + j < positions ? head_values + size(i + j, stride) : zeros.data();
    pack_values(four, head_dim_, values + size(i / 4, line), size(whole, lanes), sums.data());
  }
  for (int d = 0; d < outputs(); ++d) panel.value_sums[d] = static_cast<float>(127 * sums[static_cast<std::size_t>(d)]);
}

void EncoderAttention::attend(std::span<const Recording> recordings, const Gate* gate, const float* queries, float* out,
                              int stride) {
  struct Part {  // a head of a recording
    const Recording* recording;
    int head;
    Panel panel;
  };
  std::size_t bytes = line;
  for (const Recording& recording : recordings)
    bytes += static_cast<std::size_t>(weights_.heads) * (panel_bytes(recording.positions()) + line);
  panels_.reserve(bytes);
  std::uint8_t* at = panels_.data();
  std::vector<Part> parts;
  std::vector<std::array<int, 2>> tiles;  // of which part, and its first query
  for (const Recording& recording : recordings)
    for (int head = 0; head < weights_.heads; ++head) {
      at = aligned(at);
      for (int i = 0; i < recording.count; i += tile_queries) tiles.push_back({static_cast<int>(parts.size()), i});
      parts.push_back({&recording, head, panel(at, recording.positions())});
      at += panel_bytes(recording.positions());
    }
  pool_.parallel(static_cast<int>(parts.size()), [&](int i, int) {
    const Part& part = parts[static_cast<std::size_t>(i)];
    pack(*part.recording, part.head, part.panel);
  });
  pool_.parallel(static_cast<int>(tiles.size()), [&](int i, int thread) {
    const auto [index, first] = tiles[static_cast<std::size_t>(i)];
    const Part& part = parts[static_cast<std::size_t>(index)];
    attend_some(*part.recording, part.head, part.panel, gate, first, std::min(tile_queries, part.recording->count - first),
                queries, out, stride, scratch_[static_cast<std::size_t>(thread)]);
  });
}

void EncoderAttention::attend_some(const Recording& recording, int head, const Panel& panel, const Gate* gate, int first,
                                   int count, const float* queries, float* out, int stride, Scratch& scratch) const {
  const int whole = up_to(recording.positions(), whole_positions), wide = up_to(inputs(), lanes);
  const float factor = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  const std::size_t offset = size(recording.first + first, stride) + size(head, head_dim_);
  scratch.queries.reserve(size(tile_queries, wide));
  scratch.scores.reserve(size(tile_queries, whole));
  scratch.out.reserve(size(tile_queries, outputs()));
  if (bytes()) scratch.unpacked.reserve(std::max(unpack_bytes(panel.keys), unpack_bytes(panel.values)));
  for (int i = 0; i < count; ++i) {
    const float* q = queries + offset + size(i, stride);
    float* to = row_of(scratch.queries, i, wide);
    for (int d = 0; d < head_dim_; ++d) to[d] = q[d] * factor;
    std::fill(to + head_dim_, to + wide, 0.0f);
  }
  operations_.product(panel.keys, quantized_queries(panel, count, scratch), count, 0, panel.keys.groups(), scratch.scores.data(),
                      whole, false, scratch.unpacked.data());
  if (gate)
    for (int i = 0; i < count; ++i)
      add_bias(recording, head, *gate, first + i, queries + offset + size(i, stride), row_of(scratch.scores, i, whole));
  operations_.product(panel.values, shares(panel, count, scratch), count, 0, panel.values.groups(), scratch.out.data(), outputs(),
                      false, scratch.unpacked.data());
  for (int i = 0; i < count; ++i) {
    float* row = row_of(scratch.out, i, outputs());
    if (bytes())  // a byte b stands for b + 127
      operations_.add_scaled(row, panel.value_sums, scratch.weight_scales.data()[i], outputs());
    std::copy_n(row, head_dim_, out + offset + size(i, stride));
  }
}

// The scaled queries as products with keys take them.
ActivationsView EncoderAttention::quantized_queries(const Panel& panel, int count, Scratch& scratch) const {
  const int wide = up_to(inputs(), lanes), number = bytes() ? 1 : 2;
  if (panel.keys.floats()) return {nullptr, nullptr, nullptr, 0, 0, 0, scratch.queries.data(), wide};
  scratch.quantized.reserve(size(tile_queries, wide * number));
  scratch.query_scales.reserve(tile_queries);
  scratch.query_starts.reserve(tile_queries);
  const ActivationsView out{scratch.quantized.data(), scratch.query_scales.data(), scratch.query_starts.data(), wide * number, 1, 1,
                            nullptr, 0};
  for (int i = 0; i < count; ++i) operations_.quantize(row_of(scratch.queries, i, wide), panel.keys, out, i);
  return out;
}

// Scores to shares of one, as products with values take them.
ActivationsView EncoderAttention::shares(const Panel& panel, int count, Scratch& scratch) const {
  const int positions = panel.keys.rows, whole = up_to(positions, whole_positions), number = bytes() ? 1 : 2;
  scratch.weights.reserve(size(tile_queries, whole * number));
  scratch.weight_scales.reserve(tile_queries);
  scratch.weight_starts.reserve(tile_queries);
  const ActivationsView out{scratch.weights.data(), scratch.weight_scales.data(), scratch.weight_starts.data(), whole * number, 1, 1,
                            scratch.scores.data(), whole};
  for (int i = 0; i < count; ++i) {
    float* scores = row_of(scratch.scores, i, whole);
    if (bytes()) {
      const ByteWeights weights = operations_.weigh(scores, positions, panel.value_scales, out.values + size(i, whole), whole);
      out.scales[i] = weights.scale;
      out.starts[i] = -zero * weights.sum;
      continue;
    }
    operations_.softmax(scores, positions);
    if (brain_floats()) operations_.quantize(scores, panel.values, out, i);
  }
  return out;
}

void EncoderAttention::add_bias(const Recording& recording, int head, const Gate& gate, int query, const float* q,
                                float* scores) const {
  const int width = outputs(), positions = recording.positions();
  std::vector<float> padded_query(static_cast<std::size_t>(width), 0.0f);
  std::copy_n(q, head_dim_, padded_query.data());
  float lane[lanes] = {};
  operations_.dot(padded_query.data(), gate.weight.data(), width, 2, width, lane);
  for (int i = 0; i < 2; ++i) lane[i] = -(lane[i] + gate.bias[static_cast<std::size_t>(i)]);
  operations_.exp(lane, lanes);
  const float a = 1.0f / (lane[0] + 1.0f), b = 1.0f / (lane[1] + 1.0f);
  const float opened = a * (b * gate.scale[static_cast<std::size_t>(head)] - 1.0f) + 2.0f;
  const float* row = bias_.data() + size(head, bias_stride_) + weights_.longest() - 1 - (recording.past + query);
  operations_.add_scaled(scores, row, opened, up_to(positions, lanes));
}

}  // namespace salmonrun

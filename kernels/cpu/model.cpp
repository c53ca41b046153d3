#include "model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "float_mode.h"

namespace salmonrun {
namespace {

// Rows that go through the layers together: so many that weights are read seldom, so few that activations stay in a core's
// cache. Longer rounds go in slices, which changes nothing: a row's result does not depend on its company.
constexpr int slice_rows = 128;

}  // namespace

Model::Model(Weights weights, const Operations& operations, int threads, CacheNumber cache)
    : weights_((weights.check(), std::move(weights))),
      operations_(operations),
      cache_({static_cast<int>(weights_.layers.size()), weights_.kv_heads, weights_.head_dim, cache}),
      pool_(threads),
      products_(operations, pool_),
      hidden_(operations, pool_),
      dim_(padded(weights_.dim())),
      heads_stride_(padded(weights_.heads * weights_.head_dim)),
      kv_stride_(padded(weights_.kv_heads * weights_.head_dim)) {
  for (const Layer& layer : weights_.layers) {
    products_.expect(layer.q);
    products_.expect(layer.o);
    for (const Mlp* mlp : layer.mlps()) {
      products_.expect(mlp->gate);
      products_.expect(mlp->down);
    }
  }
  products_.expect(weights_.head);
  normed_.reserve(size(threads, dim_));
}

void Model::check(std::span<const Chunk> chunks, std::span<const float> embeds, std::span<float> logits) const {
  std::size_t positions = 0, wanted = 0;
  std::unordered_map<int, int> seen;
  for (const Chunk& chunk : chunks) {
    const int length = cache_.length(chunk.sequence);
    if (++seen[chunk.sequence] > 1) throw std::invalid_argument("a sequence may occur once in a round");
    if (chunk.count < 1 || chunk.wanted < 0 || chunk.wanted > chunk.count)
      throw std::invalid_argument(std::to_string(chunk.wanted) + " logits are wanted of " + std::to_string(chunk.count) +
                                  " positions; at least one is needed");
    if (chunk.count > weights_.max_length() - length)
      throw std::invalid_argument(std::to_string(length) + " + " + std::to_string(chunk.count) + " positions exceed " +
                                  std::to_string(weights_.max_length()));
    positions += static_cast<std::size_t>(chunk.count);
    wanted += static_cast<std::size_t>(chunk.wanted);
  }
  if (embeds.size() != positions * static_cast<std::size_t>(weights_.dim()))
    throw std::invalid_argument("embeddings of another size than the chunks say");
  if (logits.size() != wanted * static_cast<std::size_t>(weights_.head.rows()))
    throw std::invalid_argument("logits of another size than the chunks say");
}

void Model::forward(std::span<const Chunk> chunks, std::span<const float> embeds, std::span<float> logits) {
  const FloatMode mode;
  check(chunks, embeds, logits);
  for (const Chunk& chunk : chunks) cache_.prepare(chunk.sequence, cache_.length(chunk.sequence) + chunk.count);
  const float* input = embeds.data();
  float* output = logits.data();
  std::vector<Row> slice;
  const auto flush = [&] {
    if (slice.empty()) return;
    const std::size_t used = size(static_cast<int>(slice.size()), weights_.dim());
    run(slice, input);
    input += used;
    slice.clear();
  };
  for (const Chunk& chunk : chunks) {
    const int length = cache_.length(chunk.sequence);
    for (int i = 0; i < chunk.count; ++i) {
      const bool wanted = i >= chunk.count - chunk.wanted;
      slice.push_back({chunk.sequence, length + i, wanted ? output : nullptr});
      if (wanted) output += weights_.head.rows();
      if (slice.size() == slice_rows) flush();
    }
  }
  flush();
  for (const Chunk& chunk : chunks) cache_.set_length(chunk.sequence, cache_.length(chunk.sequence) + chunk.count);
}

void Model::run(std::vector<Row>& rows, const float* embeds) {
  const int count = static_cast<int>(rows.size());
  x_.reserve(size(count, dim_));
  for (int i = 0; i < count; ++i) std::copy_n(embeds + size(i, weights_.dim()), weights_.dim(), row_of(x_, i, dim_));
  for (int i = 0; i < static_cast<int>(weights_.layers.size()); ++i) run_layer(i, rows);
  if (!rows.empty()) head(rows);
}

void Model::run_layer(int index, std::vector<Row>& rows) {
  attention(index, rows);
  if (rows.empty()) return;
  feed_forward(weights_.layers[static_cast<std::size_t>(index)], static_cast<int>(rows.size()));
}

void Model::attention(int index, std::vector<Row>& rows) {
  const Layer& layer = weights_.layers[static_cast<std::size_t>(index)];
  const int count = static_cast<int>(rows.size());
  q_.reserve(size(count, heads_stride_));
  k_.reserve(size(count, kv_stride_));
  v_.reserve(size(count, kv_stride_));
  attended_.reserve(size(count, heads_stride_));
  norm_and_quantize(layer.input_norm, count, layer.q);
  products_.product(std::array<Products::Output, 3>{{{&layer.q, q_.data(), heads_stride_},
                                 {&layer.k, k_.data(), kv_stride_},
                                 {&layer.v, v_.data(), kv_stride_}}},
          count, false);
  pool_.parallel(count, [&](int i, int) { rotate_and_store(layer, index, rows[static_cast<std::size_t>(i)], i); });
  if (index + 1 == static_cast<int>(weights_.layers.size())) keep_wanted(rows);
  if (rows.empty()) return;
  attend(layer, index, rows);
  const int left = static_cast<int>(rows.size());
  products_.quantize(attended_.data(), heads_stride_, left, layer.o);
  products_.product(std::array<Products::Output, 1>{{{&layer.o, x_.data(), dim_}}}, left, true);
}

// Norms of heads, rotary positions, and keys and values into the cache.
void Model::rotate_and_store(const Layer& layer, int index, const Row& row, int i) {
  const int head_dim = weights_.head_dim, half = head_dim / 2;
  const float* cos = weights_.cos.data() + size(row.position, half);
  const float* sin = weights_.sin.data() + size(row.position, half);
  const auto turn = [&](float* head, const std::vector<float>& norm, float factor) {
    if (!norm.empty()) operations_.rms_norm(head, norm.data(), head_dim, weights_.eps, head);
    operations_.rotate(head, cos, sin, head_dim, factor);
  };
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  for (int h = 0; h < weights_.heads; ++h) turn(row_of(q_, i, heads_stride_) + h * head_dim, layer.q_norm, scale);
  for (int h = 0; h < weights_.kv_heads; ++h) {
    float* key = row_of(k_, i, kv_stride_) + h * head_dim;
    turn(key, layer.k_norm, 1.0f);
    store(index, row, h, key, row_of(v_, i, kv_stride_) + h * head_dim);
  }
}

// A key and a value to their places: see AttentionTask.
void Model::store(int index, const Row& row, int kv_head, const float* key, const float* value) {
  const int head_dim = weights_.head_dim, place = row.position % page_size;
  const int page = cache_.pages(row.sequence)[static_cast<std::size_t>(row.position / page_size)];
  std::uint8_t* head = cache_.head(page, index, kv_head);
  const auto scatter = [&](auto* keys, const auto* numbers, int d) {  // of d .. d + 15
    const int strip = place / lanes;
    for (int lane = 0; lane < lanes; ++lane) keys[(strip * head_dim + d + lane) * lanes + place % lanes] = numbers[lane];
  };
  if (cache_.shape().number == CacheNumber::half) {
    auto* keys = reinterpret_cast<std::uint16_t*>(head);
    for (int d = 0; d < head_dim; d += lanes) {
      std::uint16_t halves[lanes];
      operations_.to_half(key + d, halves, lanes);
      scatter(keys, halves, d);
    }
    operations_.to_half(value, keys + size(page_size + place, head_dim), head_dim);
  } else {
    auto* keys = reinterpret_cast<std::int8_t*>(head);
    auto* scales = reinterpret_cast<float*>(keys + 2 * size(page_size, head_dim));
    std::int8_t* values = keys + size(page_size + place, head_dim);
    scales[place] = operations_.to_bytes(key, values, head_dim);  // whose value takes their place below
    for (int d = 0; d < head_dim; d += lanes) scatter(keys, values + d, d);
    scales[page_size + place] = operations_.to_bytes(value, values, head_dim);
  }
}

void Model::attend(const Layer& layer, int index, const std::vector<Row>& rows) {
  const int count = static_cast<int>(rows.size()), kv_heads = weights_.kv_heads, head_dim = weights_.head_dim;
  const int group = weights_.heads / kv_heads;
  int pages = 0;
  for (const Row& row : rows) pages = std::max(pages, row.position / page_size + 1);
  const std::size_t scores_stride = size(pages * page_size, group);
  scores_.reserve(scores_stride * static_cast<std::size_t>(pool_.threads()));
  pages_.reserve(size(pages, pool_.threads()));
  pool_.parallel(count * kv_heads, [&](int i, int thread) {
    const int kv_head = i / count, r = i % count;  // neighbours read the same keys and values
    const Row& row = rows[static_cast<std::size_t>(r)];
    const int first = layer.window ? std::max(0, row.position + 1 - layer.window) : 0;
    const std::uint8_t** heads = pages_.data() + size(pages, thread);
    const std::vector<int>& sequence = cache_.pages(row.sequence);
    for (int p = first / page_size; p <= row.position / page_size; ++p)
      heads[p] = cache_.head(sequence[static_cast<std::size_t>(p)], index, kv_head);
    const int offset = kv_head * group * head_dim;
    operations_.attend({row_of(q_, r, heads_stride_) + offset, row_of(attended_, r, heads_stride_) + offset, heads,
                        scores_.data() + scores_stride * static_cast<std::size_t>(thread), cache_.shape().number, group,
                        head_dim, first, row.position});
  });
}

// Behind the keys and values of the last layer, only rows go on whose logits are wanted.
void Model::keep_wanted(std::vector<Row>& rows) {
  int kept = 0;
  for (int i = 0; i < static_cast<int>(rows.size()); ++i) {
    if (!rows[static_cast<std::size_t>(i)].logits) continue;
    if (kept < i) {
      std::copy_n(row_of(x_, i, dim_), dim_, row_of(x_, kept, dim_));
      std::copy_n(row_of(q_, i, heads_stride_), heads_stride_, row_of(q_, kept, heads_stride_));
      rows[static_cast<std::size_t>(kept)] = rows[static_cast<std::size_t>(i)];
    }
    ++kept;
  }
  rows.resize(static_cast<std::size_t>(kept));
}

void Model::feed_forward(const Layer& layer, int rows) {
  if (const Mlp* mlp = std::get_if<Mlp>(&layer.mlp)) {
    norm_and_quantize(layer.post_norm, rows, mlp->gate);
    return run_mlps(std::array<Part, 1>{{{mlp, 0, rows}}}, x_.data(), true);
  }
  const Mixture& mixture = std::get<Mixture>(layer.mlp);
  route(layer, mixture, rows);
  const std::vector<Part> parts = distribute(mixture, rows);
  expert_outputs_.reserve(size(static_cast<int>(sources_.size()), dim_));
  run_mlps(parts, expert_outputs_.data(), false);
  combine(mixture, rows);
}

// Norms of rows, which stay in `normed_`, and the choices of each.
void Model::route(const Layer& layer, const Mixture& mixture, int rows) {
  const int experts = static_cast<int>(mixture.experts.size()), stride = padded(experts);
  const std::size_t per_token = static_cast<std::size_t>(mixture.per_token);
  normed_.reserve(size(rows, dim_));
  shares_.reserve(size(pool_.threads(), stride));
  choices_.resize(static_cast<std::size_t>(rows) * per_token);
  pool_.parallel(rows, [&](int row, int thread) {
    float *normed = row_of(normed_, row, dim_), *shares = row_of(shares_, thread, stride);
    operations_.rms_norm(row_of(x_, row, dim_), layer.post_norm.data(), weights_.dim(), weights_.eps, normed);
    operations_.dot(normed, mixture.router.data(), dim_, experts, weights_.dim(), shares);
    operations_.softmax(shares, experts);
    choose({shares, mixture.experts.size()}, mixture.normalised,
           std::span(choices_).subspan(static_cast<std::size_t>(row) * per_token, per_token));
  });
}

// The rows of each expert, quantized side by side.
std::vector<Model::Part> Model::distribute(const Mixture& mixture, int rows) {
  const int chosen = static_cast<int>(choices_.size());
  sources_.resize(choices_.size() + static_cast<std::size_t>(mixture.shared ? rows : 0));
  const std::vector<int> begins =
      arrange(choices_, mixture.per_token, static_cast<int>(mixture.experts.size()), sources_);
  std::vector<Part> parts;
  for (std::size_t i = 0; i < mixture.experts.size(); ++i)
    if (begins[i] < begins[i + 1]) parts.push_back({&mixture.experts[i], begins[i], begins[i + 1] - begins[i]});
  if (mixture.shared) {
    std::iota(sources_.begin() + chosen, sources_.end(), 0);
    parts.push_back({&*mixture.shared, chosen, rows});
  }
  const MatrixView gate = mixture.experts.front().gate.view();
  const ActivationsView out = products_.activations(static_cast<int>(sources_.size()), gate);
  pool_.parallel(static_cast<int>(sources_.size()), [&](int i, int) {
    operations_.quantize(row_of(normed_, sources_[static_cast<std::size_t>(i)], dim_), gate, out, i);
  });
  return parts;
}

// What the experts of each row say, weighted, is added to it.
void Model::combine(const Mixture& mixture, int rows) {
  const int dim = weights_.dim(), per_token = mixture.per_token;
  pool_.parallel(rows, [&](int row, int) {
    const float shared = mixture.shared ? shared_share(mixture, row) : 0.0f;
    float* total = row_of(normed_, row, dim_);  // which nobody needs any more
    std::fill_n(total, dim_, 0.0f);
    for (int i = row * per_token; i < (row + 1) * per_token; ++i) {
      const Choice& choice = choices_[static_cast<std::size_t>(i)];
      operations_.add_scaled(total, row_of(expert_outputs_, choice.place, dim_), choice.weight, dim);
    }
    if (mixture.shared)
      operations_.add_scaled(total, row_of(expert_outputs_, rows * per_token + row, dim_), shared, dim);
    operations_.add_scaled(row_of(x_, row, dim_), total, 1.0f, dim);
  });
}

float Model::shared_share(const Mixture& mixture, int row) {
  float lane[lanes] = {};
  operations_.dot(row_of(normed_, row, dim_), mixture.shared_gate.data(), dim_, 1, weights_.dim(), lane);
  lane[0] = -lane[0];
  operations_.exp(lane, lanes);
  return 1.0f / (lane[0] + 1.0f);
}

// Rows that are quantized for the parts' gates, which follow each other, to `out` [rows][dim_].
void Model::run_mlps(std::span<const Part> parts, float* out, bool add) {
  const int rows = parts.back().first + parts.back().rows;
  const ActivationsView x = products_.activations(rows, parts.front().mlp->gate.view()), hidden = hide(parts, x, rows);
  products_.over_groups(parts.size(), product_groups, [&](std::size_t i) { return parts[i].mlp->down.view().groups(); },
              [&](std::size_t i, int group, int groups, int thread) {
                const Part& part = parts[i];
                operations_.product(part.mlp->down.view(), hidden.from(part.first), part.rows, group, groups,
                                    out + size(part.first, dim_), dim_, add, products_.unpack_scratch(thread));
              });
}

// What lies between the gates and `down` of each part, quantized for it piece by piece. The parts may differ in width.
ActivationsView Model::hide(std::span<const Part> parts, const ActivationsView& x, int rows) {
  const Part& widest = *std::max_element(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return a.mlp->down.columns() < b.mlp->down.columns();
  });
  const MatrixView down = widest.mlp->down.view();
  const ActivationsView out = hidden_.activations(rows, down);
  const int at_once = Products::groups_of_inputs(down), piece = at_once * lanes;
  for (Buffer<float>* buffer : {&gate_, &up_}) buffer->reserve(size(rows * pool_.threads(), piece));
  products_.over_groups(parts.size(), at_once, [&](std::size_t i) { return parts[i].mlp->gate.view().groups(); },
              [&](std::size_t i, int group, int groups, int thread) {
                const Part& part = parts[i];
                const Mlp& mlp = *part.mlp;
                float *gate = row_of(gate_, rows * thread, piece), *up = row_of(up_, rows * thread, piece);
                std::uint8_t* scratch = products_.unpack_scratch(thread);
                const ActivationsView mine = x.from(part.first);
                operations_.product(mlp.gate.view(), mine, part.rows, group, groups, gate - group * lanes, piece, false, scratch);
                operations_.product(mlp.up.view(), mine, part.rows, group, groups, up - group * lanes, piece, false, scratch);
                for (int row = 0; row < part.rows; ++row)
                  operations_.silu_mul(gate + size(row, piece), up + size(row, piece), groups * lanes);
                hidden_.quantize_piece(gate, part.rows, mlp.down, group, out.from(part.first));
              });
  return out;
}

// Rows whose logits are wanted follow each other in `logits`.
void Model::head(const std::vector<Row>& rows) {
  const int count = static_cast<int>(rows.size());
  norm_and_quantize(weights_.norm, count, weights_.head);
  products_.product(std::array<Products::Output, 1>{{{&weights_.head, rows.front().logits, weights_.head.rows()}}}, count, false);
}

void Model::norm_and_quantize(const std::vector<float>& norm, int rows, const Matrix& matrix) {
  const MatrixView view = matrix.view();
  const ActivationsView out = products_.activations(rows, view);
  pool_.parallel(rows, [&](int row, int thread) {
    float* normed = row_of(normed_, thread, dim_);
    operations_.rms_norm(row_of(x_, row, dim_), norm.data(), weights_.dim(), weights_.eps, normed);
    operations_.quantize(normed, view, out, row);
  });
}

}  // namespace salmonrun

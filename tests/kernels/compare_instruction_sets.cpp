// Every instruction set that runs here against `portable`, operation by operation, to the bit. Prints what it compared.
//
// tests/kernels/test_other_processors.py builds it for processors that this one is not, and runs it in an emulator.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "instruction_sets.h"

namespace {

using namespace salmonrun;
using Floats = std::vector<float>;

std::mt19937 generator(7);
int compared = 0;

Floats floats(std::size_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  Floats out(count);
  for (float& x : out) x = normal(generator);
  return out;
}

std::vector<std::uint8_t> bytes(std::size_t count) {
  std::vector<std::uint8_t> out(count);
  for (auto& x : out) x = static_cast<std::uint8_t>(generator());
  return out;
}

template <class T>
void same(const char* set, const char* what, const std::vector<T>& found, const std::vector<T>& expected) {
  ++compared;
  if (!std::memcmp(found.data(), expected.data(), expected.size() * sizeof(T))) return;
  std::printf("%s: %s is not what portable computes\n", set, what);
  std::exit(1);
}

void compare_elementwise(const Operations& own, const Operations& portable) {
  for (const int n : {16, 48, 128}) {
    Floats x = floats(n, 20.0f), y = floats(n), other;
    x[0] = NAN, x[1] = INFINITY, x[2] = -INFINITY, x[3] = -0.0f, x[4] = -87.5f, x[5] = 88.5f, x[6] = 1e-40f;
    const auto both = [&](const char* what, auto&& call) {
      Floats a = x, b = x;
      call(own, a), call(portable, b);
      same(own.name, what, a, b);
    };
    both("exp", [&](const Operations& set, Floats& to) { set.exp(to.data(), n); });
    both("silu_mul", [&](const Operations& set, Floats& to) { set.silu_mul(to.data(), y.data(), n); });
    both("add_scaled", [&](const Operations& set, Floats& to) { set.add_scaled(to.data(), y.data(), 0.3f, n); });
    x[0] = 14.5f, x[1] = -14.5f, x[2] = 1e30f;
    both("gelu", [&](const Operations& set, Floats& to) { set.gelu(to.data(), n); });
    x = floats(n, 3.0f);
    both("rms_norm", [&](const Operations& set, Floats& to) {
      Floats out(n);
      set.rms_norm(to.data(), y.data(), n, 1e-5f, out.data());
      to = out;
    });
    both("softmax", [&](const Operations& set, Floats& to) { set.softmax(to.data(), n - 5); });
    both("rotate", [&](const Operations& set, Floats& to) { set.rotate(to.data(), y.data(), y.data() + n / 2, n, 0.25f); });
    both("dot", [&](const Operations& set, Floats& to) {
      Floats out(3), rows = x;
      rows.resize(3 * n, 0.5f);
      set.dot(to.data(), rows.data(), n, 3, n, out.data());
      to = out;
    });
    const Floats extremes = {65504, 65520, 1e-8f, 6e-8f, -1e-5f, 70000, 1.0009765f, 1.0014648f, 0, -0.0f, 5, 6, 7, 8, 9, 10};
    x.insert(x.end(), extremes.begin(), extremes.end());
    std::vector<std::uint16_t> a(x.size()), b(x.size());
    own.to_half(x.data(), a.data(), static_cast<int>(x.size()));
    portable.to_half(x.data(), b.data(), static_cast<int>(x.size()));
    same(own.name, "to_half", a, b);
    std::vector<std::int8_t> c(x.size()), d(x.size());
    const Floats own_scale = {own.to_bytes(x.data(), c.data(), static_cast<int>(x.size()))};
    same(own.name, "to_bytes", own_scale, {portable.to_bytes(x.data(), d.data(), static_cast<int>(x.size()))});
    same(own.name, "to_bytes", c, d);
  }
}

void compare_layer_norms(const Operations& own, const Operations& portable) {
  for (const int n : {1, 15, 16, 17, 100}) {
    const Floats x = floats(n, 3.0f), weight = floats(n), bias = floats(n);
    Floats a(n), b(n);
    own.layer_norm(x.data(), weight.data(), bias.data(), n, 1e-5f, a.data());
    portable.layer_norm(x.data(), weight.data(), bias.data(), n, 1e-5f, b.data());
    same(own.name, "layer_norm", a, b);
  }
}

void compare_attention_weights(const Operations& own, const Operations& portable) {
  for (const int n : {1, 15, 16, 17, 100})
    for (const float spread : {1.0f, 30.0f}) {
      constexpr int whole = 112, padded = 128;
      const Floats scores = floats(whole, spread);
      Floats scales = floats(whole);
      for (float& scale : scales) scale = std::fabs(scale);
      scales[0] = 0.0f;
      const auto run = [&](const Operations& set, std::vector<std::int8_t>& out) {
        Floats lost = scores;
        const ByteWeights found = set.weigh(lost.data(), n, scales.data(), out.data(), padded);
        return Floats{found.scale, static_cast<float>(found.sum)};
      };
      std::vector<std::int8_t> a(padded), b(padded);
      const Floats found = run(own, a);
      same(own.name, "weigh", found, run(portable, b));
      same(own.name, "weigh", a, b);
    }
}

// Bytes, or such floats as are not too small to be what they are on every processor.
std::vector<std::uint8_t> weights(int bits, std::size_t count) {
  if (bits <= 8) return bytes(count * (bits ? bits : 4) / 8);
  const Floats numbers = floats(count);
  std::vector<std::uint8_t> out(count * bits / 8);
  for (std::size_t i = 0; i < count; ++i)  // the upper half of a float is a bfloat16
    std::memcpy(out.data() + i * bits / 8, reinterpret_cast<const std::uint8_t*>(&numbers[i]) + (bits == 16 ? 2 : 0), bits / 8);
  return out;
}

// The unit in software runs where its set's other instructions may not.
bool has_brain_floats(const Operations& own) {
#if defined(__x86_64__)
  return std::strcmp(own.name, "amx") || __builtin_cpu_supports("avx512bf16");
#else
  return own.name != nullptr;
#endif
}

// `multiplied`: of super-blocks.
void compare_products(const Operations& own, const Operations& portable, int bits, int block, int activation_block,
                      int outputs, int inputs, int rows, bool multiplied = false) {
  const int whole = multiplied ? multiple_block : block;
  const int columns = (inputs + whole - 1) / whole * whole, padded = (columns + padding - 1) / padding * padding;
  const int groups = (outputs + lanes - 1) / lanes;
  const std::vector<std::uint8_t> packed = weights(bits, std::size_t(groups) * columns * lanes);
  std::vector<std::uint16_t> scales(std::size_t(groups) * ((columns + block - 1) / block) * lanes);
  for (auto& scale : scales) scale = static_cast<std::uint16_t>(generator() % 0x3c00);
  const Floats nf4_scales = floats(scales.size()), bias = floats(std::size_t(groups) * lanes);
  const bool integers = bits == 4 || bits == 8;
  std::vector<std::int8_t> multiples(std::size_t(groups) * (columns / multiple_block) * lanes);
  for (auto& multiple : multiples) multiple = static_cast<std::int8_t>(static_cast<int>(generator() % 32) - 15);
  const MatrixView matrix{packed.data(), integers ? scales.data() : nullptr, bits ? nullptr : nf4_scales.data(), bias.data(),
                          outputs,       columns, bits ? bits : 4, block, activation_block,
                          multiplied ? multiples.data() : nullptr};
  const Floats x = floats(std::size_t(rows) * padded);
  const auto run = [&](const Operations& set) {
    std::vector<std::int8_t> values(std::size_t(rows) * padded * 2);  // bytes, or bfloat16
    Floats x_scales(std::size_t(rows) * (padded / 32)), as_they_are(std::size_t(rows) * padded);
    std::vector<std::int32_t> starts(std::size_t(rows) * (padded / 32));
    const ActivationsView view{values.data(), x_scales.data(), starts.data(),       2 * padded, padded / 32,
                               padded / 32,   as_they_are.data(), padded};
    for (int row = 0; row < rows; ++row) set.quantize(x.data() + std::ptrdiff_t{row} * padded, matrix, view, row);
    Floats out(std::size_t(rows) * outputs, 1.0f);
    std::vector<std::uint8_t> scratch(unpack_bytes(matrix));
    set.product(matrix, view, rows, 0, groups, out.data(), outputs, rows % 2 == 1, scratch.data());
    out.insert(out.end(), x_scales.begin(), x_scales.end());
    return std::make_pair(out, values);
  };
  const auto [found, found_values] = run(own);
  const auto [expected, expected_values] = run(portable);
  same(own.name, "quantized activations", found_values, expected_values);
  same(own.name, "product", found, expected);
}

std::vector<std::uint8_t> cache_page(const Operations& portable, CacheNumber number, int head_dim) {
  const Floats values = floats(std::size_t{2} * page_size * head_dim), scales = floats(2 * page_size);
  if (number == CacheNumber::half) {
    std::vector<std::uint16_t> halves(values.size());
    portable.to_half(values.data(), halves.data(), static_cast<int>(values.size()));
    const auto* begin = reinterpret_cast<const std::uint8_t*>(halves.data());
    return {begin, begin + halves.size() * sizeof(std::uint16_t)};
  }
  std::vector<std::uint8_t> page = bytes(values.size());
  const auto* begin = reinterpret_cast<const std::uint8_t*>(scales.data());
  page.insert(page.end(), begin, begin + scales.size() * sizeof(float));
  return page;
}

void compare_attention(const Operations& own, const Operations& portable, CacheNumber number, int group, int head_dim,
                       int first, int last) {
  const int pages = last / page_size + 1;
  std::vector<std::vector<std::uint8_t>> cache;
  std::vector<const std::uint8_t*> at;
  for (int i = 0; i < pages; ++i) cache.push_back(cache_page(portable, number, head_dim));
  for (const auto& page : cache) at.push_back(page.data());
  const Floats q = floats(std::size_t(group) * head_dim);
  const auto run = [&](const Operations& set) {
    Floats out(std::size_t(group) * head_dim), scores(std::size_t(group) * pages * page_size);
    set.attend({q.data(), out.data(), at.data(), scores.data(), number, group, head_dim, first, last});
    return out;
  };
  same(own.name, "attend", run(own), run(portable));
}

}  // namespace

int main() {
  std::vector<const Operations*> sets = instruction_sets();
#if defined(COMPARE_ALSO)
  sets.push_back(&COMPARE_ALSO);  // which runs here, though the processor does not say so
#endif
  for (const Operations* own : sets) {
    if (own == &portable_operations) continue;
    compared = 0;
    compare_elementwise(*own, portable_operations);
    compare_layer_norms(*own, portable_operations);
    compare_attention_weights(*own, portable_operations);
    for (const int bits : {4, 8, 0})  // 0: nf4
      for (const int block : {32, 64, 128})
        for (const int scaled : {1, 2})
          for (const int rows : {1, 2, 3, 5, 7, 16, 17, 33}) {
            compare_products(*own, portable_operations, bits, block, block * scaled, 100, 300, rows);
            compare_products(*own, portable_operations, bits, block, block * scaled, 1, 32, rows);
          }
    for (const int rows : {1, 2, 3, 5, 7, 16, 17, 33, 48}) {
      for (const int inputs : {1, 100, 300})
        for (const int outputs : {1, 100}) compare_products(*own, portable_operations, 4, super_block, super_block, outputs, inputs, rows, true);
      for (const int inputs : {1, 100, 300}) compare_products(*own, portable_operations, 32, inputs, inputs, 100, inputs, rows);
      for (const int inputs : {2, 100, 300})
        if (has_brain_floats(*own)) compare_products(*own, portable_operations, 16, inputs, inputs, 100, inputs, rows);
      // Keys and values of a head: one block each, as wide as a head, or as a recording is long.
      for (const int block : {32, 64, 128, 192, 1536})
        for (const int outputs : {16, 80, 100}) compare_products(*own, portable_operations, 8, block, block, outputs, block, rows);
    }
    for (const int group : {1, 2, 3, 7})
      for (const int head_dim : {16, 48, 64, 128})
        for (const CacheNumber number : {CacheNumber::half, CacheNumber::byte}) {
          compare_attention(*own, portable_operations, number, group, head_dim, 0, 0);
          compare_attention(*own, portable_operations, number, group, head_dim, 70, 200);
        }
    std::printf("%s: %d results are those of portable\n", own->name, compared);
  }
}

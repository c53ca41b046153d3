#include "self_test.h"

#include <cstring>
#include <vector>

namespace salmonrun {
namespace {

constexpr int outputs = 40, columns = 2 * padding;  // the last group of outputs is not whole

class Numbers {  // Lehmer's generator with the constants of std::minstd_rand, whose distributions differ between libraries
 public:
  int next(int below) { return static_cast<int>((state_ = state_ * 48271 % 2147483647) % below); }

 private:
  std::int64_t state_ = 1;
};

// `multiplied`: of super-blocks.
std::vector<float> products(const Operations& operations, int bits, int block, int rows, bool multiplied) {
  Numbers numbers;
  const int groups = (outputs + lanes - 1) / lanes, blocks = columns / block;
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(groups * 2 * columns * bits));
  for (auto& byte : packed) byte = static_cast<std::uint8_t>(numbers.next(256));
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(groups * blocks * lanes));
  for (auto& scale : scales) scale = static_cast<std::uint16_t>(numbers.next(0x3c00));  // float16 below one
  std::vector<float> x(static_cast<std::size_t>(rows * columns));
  for (auto& value : x) value = static_cast<float>(numbers.next(2001) - 1000) / 256.0f;

  std::vector<std::int8_t> multiples(static_cast<std::size_t>(groups * columns / multiple_block * lanes));
  for (auto& multiple : multiples) multiple = static_cast<std::int8_t>(numbers.next(32) - 15);

  MatrixView matrix{packed.data(), scales.data(), nullptr, nullptr, outputs, columns, bits, block, multiplied ? block : 2 * block};
  if (multiplied) matrix.multiples = multiples.data();
  std::vector<std::int8_t> values(x.size());
  std::vector<float> value_scales(static_cast<std::size_t>(rows * matrix.activation_blocks()));
  std::vector<std::int32_t> starts(static_cast<std::size_t>(rows * matrix.starts()));
  const ActivationsView view{values.data(),    value_scales.data(), starts.data(), columns, matrix.activation_blocks(),
                             matrix.starts(), nullptr,             0};
  for (int row = 0; row < rows; ++row) operations.quantize(x.data() + row * columns, matrix, view, row);
  std::vector<float> out(static_cast<std::size_t>(rows * outputs));
  std::vector<std::uint8_t> scratch(unpack_bytes(matrix));
  operations.product(matrix, view, rows, 0, groups, out.data(), outputs, false, scratch.data());
  return out;
}

}  // namespace

bool same_products(const Operations& asked, const Operations& trusted) {
  const auto same = [&](int bits, int block, bool multiplied) {
    for (const int rows : {3, 16, 33}) {
      const std::vector<float> found = products(asked, bits, block, rows, multiplied), expected = products(trusted, bits, block, rows, multiplied);
      if (std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) != 0) return false;
    }
    return true;
  };
  for (const int bits : {4, 8})
    for (const int block : {32, 64, 128})
      if (!same(bits, block, false)) return false;
  return same(4, super_block, true);
}

}  // namespace salmonrun

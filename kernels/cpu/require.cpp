#include "require.h"

#include <stdexcept>

namespace salmonrun {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

void require_size(std::size_t found, std::size_t expected, const std::string& what) {
  require(found == expected, what + ": " + std::to_string(found) + " values, expected " + std::to_string(expected));
}

void require_shape(const Matrix& matrix, std::int64_t rows, std::int64_t columns, const std::string& name) {
  require(matrix.rows() == rows && matrix.columns() == columns,
          name + " is " + std::to_string(matrix.rows()) + " x " + std::to_string(matrix.columns()) + ", expected " +
              std::to_string(rows) + " x " + std::to_string(columns));
}

void require_alike(const Matrix& one, const Matrix& other, const std::string& names) {
  const MatrixView a = one.view(), b = other.view();
  require(a.nf4() == b.nf4() && a.bits == b.bits && a.block == b.block && a.activation_block == b.activation_block &&
              (a.multiples == nullptr) == (b.multiples == nullptr),
          names + " are quantized in different ways");
}

}  // namespace salmonrun

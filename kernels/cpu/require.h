// Checks of sizes, which say what was found and what was expected.
#pragma once

#include <cstdint>
#include <string>

#include "weights.h"

namespace salmonrun {

// All throw std::invalid_argument.
void require(bool holds, const std::string& what);
void require_size(std::size_t found, std::size_t expected, const std::string& what);
void require_shape(const Matrix& matrix, std::int64_t rows, std::int64_t columns, const std::string& name);

// Products that share their inputs share how these are quantized.
void require_alike(const Matrix& one, const Matrix& other, const std::string& names);

}  // namespace salmonrun

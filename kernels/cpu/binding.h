// What the parts of the extension share: arrays as spans, and who keeps them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <span>
#include <vector>

#include "weights.h"

namespace salmonrun {

namespace nb = nanobind;

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Floats = Array<const float>;

template <class T>
std::span<T> span(const Array<T>& array) {
  return {array.data(), array.size()};
}

inline std::span<const float> span(const std::optional<Floats>& array) {
  return array ? span(*array) : std::span<const float>{};
}

// Keeps Python objects for as long as something points into them.
inline Owner keep(nb::object objects) {
  return Owner(new nb::object(std::move(objects)), [](const void* kept) {
    const nb::gil_scoped_acquire gil;
    delete static_cast<const nb::object*>(kept);
  });
}

inline std::vector<float> copy(std::span<const float> values) { return {values.begin(), values.end()}; }

void bind_encoder(nb::module_& module);

}  // namespace salmonrun

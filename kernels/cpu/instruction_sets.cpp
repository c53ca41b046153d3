#include "instruction_sets.h"

#include <stdexcept>
#include <string>

namespace salmonrun {

std::vector<const Operations*> instruction_sets() {
  std::vector<const Operations*> found;
#if defined(__x86_64__)
  // These ask whether the operating system keeps the registers, too.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
    found.push_back(&avx512_vnni_operations);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&avx2_operations);
#endif
  found.push_back(&portable_operations);
  return found;
}

const Operations& instruction_set(std::string_view name) {
  std::string names;
  for (const Operations* one : instruction_sets()) {
    if (one->name == name) return *one;
    names += names.empty() ? one->name : std::string(", ") + one->name;
  }
  throw std::invalid_argument("instruction set '" + std::string(name) + "'; this processor has " + names);
}

}  // namespace salmonrun

// The instruction sets this build has, and which of them this processor has.
#pragma once

#include <string_view>
#include <vector>

#include "operations.h"

namespace salmonrun {

extern const Operations portable_operations;
extern const Operations avx2_operations, avx2_vnni_operations, avx512_vnni_operations;  // on x86-64 alone
extern const Operations avx512_bf16_operations, amx_operations;
extern const Operations neon_operations;                                                                 // on AArch64 alone

// Those that can run here, the fastest first.
std::vector<const Operations*> instruction_sets();

// The one of this name; throws std::invalid_argument where it cannot run.
const Operations& instruction_set(std::string_view name);

}  // namespace salmonrun

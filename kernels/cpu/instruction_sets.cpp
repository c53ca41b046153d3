#include "instruction_sets.h"

#include <stdexcept>
#include <string>

#include "self_test.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(SALMONRUN_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace salmonrun {

namespace {

#if defined(SALMONRUN_AVX_VNNI)
// Intel's manual, volume 2, CPUID leaf 7, subleaf 1: bit 4 of EAX. Not every compiler knows it by name.
bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 4));
}
#endif

#if defined(SALMONRUN_AVX512_BF16)
// Intel's manual, volume 2, CPUID leaf 7, subleaf 1: bit 5 of EAX.
bool has_avx512_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 5));
}
#endif

#if defined(SALMONRUN_AMX)
// Intel's manual, volume 1, chapter 18: bits 24 (registers) and 25 (int8) of EDX in CPUID's leaf 7, bits 17 and 18 of XCR0.
// Linux lets a process use the registers that has asked for them: Documentation/arch/x86/xstate.rst in its sources.
bool may_use_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx >> 24 & 3) != 3) return false;
  unsigned low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low >> 17 & 3) != 3) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

bool has_amx() {
  static const bool found = may_use_amx() && same_products(amx_operations, avx512_vnni_operations);
  return found;
}
#endif

#if defined(__aarch64__)
bool has_dot_products() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // all of Apple's since the A13
#endif
}
#endif

}  // namespace

std::vector<const Operations*> instruction_sets() {
  std::vector<const Operations*> found;
#if defined(__x86_64__)
  // These ask whether the operating system keeps the registers, too.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
#if defined(SALMONRUN_AMX)
    if (has_avx512_bf16() && has_amx()) found.push_back(&amx_operations);
#endif
#if defined(SALMONRUN_AVX512_BF16)
    if (has_avx512_bf16()) found.push_back(&avx512_bf16_operations);
#endif
    found.push_back(&avx512_vnni_operations);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
#if defined(SALMONRUN_AVX_VNNI)
    if (has_avx_vnni()) found.push_back(&avx2_vnni_operations);
#endif
    found.push_back(&avx2_operations);
  }
#elif defined(__aarch64__)
  if (has_dot_products()) found.push_back(&neon_operations);
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

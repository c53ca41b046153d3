// What a machine can do at most, by loops that do nothing else: limits THREADS -> JSON on stdout.
//
// Compiled with -march=native: what the processor has not is left out.

#ifdef __x86_64__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t read_bytes = std::size_t{1} << 30;
constexpr int tries = 3;
volatile std::int64_t sink;  // so that nothing is left out

// The shortest time of all threads together.
double seconds(int threads, const std::function<void(int)> &work) {
  double best = 1e9;
  for (int i = 0; i < tries; ++i) {
    std::chrono::steady_clock::time_point begun;
    std::barrier start(threads, [&]() noexcept { begun = std::chrono::steady_clock::now(); });
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) running.emplace_back([&, t] { start.arrive_and_wait(), work(t); });
    for (std::thread &thread : running) thread.join();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
  }
  return best;
}

// Anonymous memory in pages of 2 MiB where the system gives them.
double read_rate(int threads) {
  void *memory = mmap(nullptr, read_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  madvise(memory, read_bytes, MADV_HUGEPAGE);
  auto *numbers = static_cast<std::int64_t *>(memory);
  const std::size_t count = read_bytes / sizeof *numbers;
  std::fill_n(numbers, count, 1);
  const double taken = seconds(threads, [&](int t) {
    const std::int64_t *from = numbers + count * t / threads, *end = numbers + count * (t + 1) / threads;
    std::int64_t sums[32] = {};  // so many that no sum waits for another
    for (; from + 32 <= end; from += 32)
      for (int i = 0; i < 32; ++i) sums[i] += from[i];
    std::int64_t sum = 0;
    for (const std::int64_t one : sums) sum += one;
    sink = sum;
  });
  munmap(memory, read_bytes);
  return read_bytes / taken;
}

#ifdef __AVX512VNNI__
double vnni_rate(int threads) {
  constexpr int chains = 12, rounds = 20'000'000;
  const double taken = seconds(threads, [&](int t) {
    __m512i sums[chains], x = _mm512_set1_epi8(static_cast<char>(t + 1));
    for (auto &sum : sums) sum = _mm512_setzero_si512();
    for (int i = 0; i < rounds; ++i) {
      for (auto &sum : sums) sum = _mm512_dpbusd_epi32(sum, x, x);
      asm volatile("" : "+v"(x));  // another x, for all that the compiler knows
    }
    for (auto &sum : sums) asm volatile("" : "+v"(sum));  // somebody wants them
  });
  return 2.0 * 64 * chains * rounds * threads / taken;
}
#endif

#ifdef __AMX_INT8__
struct alignas(64) Shapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Four products of 16 x 16 sums for four loads of 1 KiB from the first cache.
double amx_rate(int threads) {
  constexpr int permission = 0x1023, tile_data = 18, rounds = 2'000'000;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, permission, tile_data)) return 0;
  const double taken = seconds(threads, [&](int) {
    alignas(64) std::uint8_t a[2][1024] = {}, b[2][1024] = {};
    Shapes shapes;
    for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = 16;
    asm volatile("" : : "r"(&shapes) : "memory");  // GCC 12 does not know that the instruction reads memory
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < rounds; ++i) {
      _tile_loadd(4, a[0], 64);
      _tile_loadd(5, a[1], 64);
      _tile_loadd(6, b[0], 64);
      _tile_loadd(7, b[1], 64);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
  });
  return 2.0 * 16 * 16 * 64 * 4 * rounds * threads / taken;
}
#endif

}  // namespace

int main(int count, char **arguments) {
  const int threads = count > 1 ? std::max(1, std::atoi(arguments[1])) : 1;
  std::printf("{\"read_huge_bytes_s\": %.6g", read_rate(threads));
#ifdef __AVX512VNNI__
  std::printf(", \"vnni_op_s\": %.6g", vnni_rate(threads));
#endif
#ifdef __AMX_INT8__
  if (const double rate = amx_rate(threads)) std::printf(", \"amx_op_s\": %.6g", rate);
#endif
  std::printf("}\n");
}

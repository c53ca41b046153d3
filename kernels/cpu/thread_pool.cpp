#include "thread_pool.h"

#include <chrono>

#include "float_mode.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace salmonrun {
namespace {

// Longer than the gaps between the loops of a round, shorter than anybody misses on a shared core.
constexpr std::chrono::microseconds spin_time{20};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  try {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {  // the system has no more of them: those that are there must end before they are forgotten
    end();
    throw;
  }
}

ThreadPool::~ThreadPool() { end(); }

void ThreadPool::end() {
  ending_ = true;
  turn_ += 2;  // still closed, but something new
  turn_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_loop(const Loop& loop) {
  if (loop.count <= 1 || workers_.empty()) {
    for (int i = 0; i < loop.count; ++i) loop.call(loop.context, i, 0);
    return;
  }
  loop_ = loop;
  next_.store(0, std::memory_order_relaxed);
  ++turn_;
  if (asleep_ > 0) turn_.notify_all();
  take_chunks(0);
  ++turn_;
  for (int spins = 0; inside_ > 0; ++spins) spins < 1000 ? pause() : std::this_thread::yield();
}

void ThreadPool::take_chunks(int thread) {
  const Loop loop = loop_;
  for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < loop.count;) loop.call(loop.context, i, thread);
}

void ThreadPool::work(int thread) {
  const FloatMode mode;
  std::uint32_t seen = 0;
  while (await_loop(seen)) {
    ++inside_;
    if (turn_ & 1) take_chunks(thread);
    --inside_;
  }
}

// Until a loop opens that was not seen before; false: the pool ends.
bool ThreadPool::await_loop(std::uint32_t& seen) {
  auto spin_until = std::chrono::steady_clock::now() + spin_time;
  for (int spins = 1;; ++spins) {
    const std::uint32_t turn = turn_;
    if (ending_) return false;
    if (turn & 1 && turn != seen) {
      seen = turn;
      return true;
    }
    pause();
    if (spins % 16 || std::chrono::steady_clock::now() < spin_until) continue;
    ++asleep_;
    turn_.wait(turn);
    --asleep_;
    spin_until = std::chrono::steady_clock::now() + spin_time;
  }
}

}  // namespace salmonrun

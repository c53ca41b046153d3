// Threads that share the chunks of a loop. They are kept, spin for a moment between two loops, and sleep when no more come.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace salmonrun {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the caller's included
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls run(index, thread) for each index below `count`, and returns when all are done. One caller at a time; `run` must
  // not throw. Nobody waits for a worker that has not begun: on a busy machine the caller does all of it.
  template <class Run>
  void parallel(int count, Run&& run) {
    using Callable = std::remove_reference_t<Run>;
    run_loop({count, [](void* context, int index, int thread) { (*static_cast<Callable*>(context))(index, thread); }, &run});
  }

 private:
  struct Loop {
    int count = 0;
    void (*call)(void* context, int index, int thread) = nullptr;
    void* context = nullptr;
  };

  void end();
  void run_loop(const Loop& loop);
  void take_chunks(int thread);
  void work(int thread);
  bool await_loop(std::uint32_t& seen);

  Loop loop_;
  std::atomic<int> next_{0};
  // Odd while a loop is open. A worker enters by counting itself in, and then looking whether the loop is still open; the
  // caller closes it, and then waits until nobody is in. So one of the two sees the other.
  alignas(64) std::atomic<std::uint32_t> turn_{0};
  alignas(64) std::atomic<int> inside_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> ending_{false};
  std::vector<std::thread> workers_;
};

}  // namespace salmonrun

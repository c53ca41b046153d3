// Memory for what is computed.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

namespace salmonrun {

constexpr std::size_t huge_page = std::size_t{2} << 20;

// Zeros, from the beginning of a cache line on; from `huge_page` bytes on in huge pages, where the system has them.
// Throws std::bad_alloc.
class Memory {
 public:
  Memory() : memory_(nullptr, Release{0}) {}
  explicit Memory(std::size_t bytes);

  std::size_t bytes() const { return memory_.get_deleter().bytes; }
  void* data() const { return memory_.get(); }

 private:
  struct Release {
    std::size_t bytes;
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Release> memory_;
};

// Memory whose size only grows; what was not written yet is zero.
template <class T>
class Buffer {
 public:
  void reserve(std::size_t size) {
    if (size * sizeof(T) <= memory_.bytes()) return;
    Memory larger(size * sizeof(T));
    if (memory_.bytes()) std::memcpy(larger.data(), memory_.data(), memory_.bytes());
    memory_ = std::move(larger);
  }
  T* data() { return static_cast<T*>(memory_.data()); }

 private:
  Memory memory_;
};

}  // namespace salmonrun

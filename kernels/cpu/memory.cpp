#include "memory.h"

#include <sys/mman.h>

#include <new>

namespace salmonrun {
namespace {

constexpr std::align_val_t line{64};

void* map(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);  // where the system has no huge pages, small ones do
#endif
  return memory;
}

}  // namespace

Memory::Memory(std::size_t bytes) {
  if (bytes >= huge_page) {
    const std::size_t whole = (bytes + huge_page - 1) / huge_page * huge_page;
    memory_ = {map(whole), Release{whole}};
  } else {
    memory_ = {std::memset(::operator new(bytes, line), 0, bytes), Release{bytes}};
  }
}

void Memory::Release::operator()(void* memory) const {
  if (bytes >= huge_page)
    munmap(memory, bytes);
  else
    ::operator delete(memory, line);
}

}  // namespace salmonrun

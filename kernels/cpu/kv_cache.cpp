#include "kv_cache.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace salmonrun {
namespace {

std::size_t pages_of(int positions) {
  return static_cast<std::size_t>((positions + page_size - 1) / page_size);
}

}  // namespace

PagePool::PagePool(std::size_t page_bytes)
    : page_bytes_(page_bytes), pages_a_slab_(page_bytes < huge_page ? huge_page / page_bytes : 1) {}

void PagePool::grow() {
  const std::size_t bytes = (page_bytes_ * pages_a_slab_ + huge_page - 1) / huge_page * huge_page;
  slabs_.emplace_back(bytes);
  const std::size_t first = holders_.size();
  holders_.resize(first + pages_a_slab_, 0);
  free_.reserve(holders_.size());  // so that releasing never fails
  for (std::size_t i = pages_a_slab_; i-- > 0;) free_.push_back(static_cast<int>(first + i));
}

int PagePool::take() {
  if (free_.empty()) grow();
  const int page = free_.back();
  free_.pop_back();
  holders_[static_cast<std::size_t>(page)] = 1;
  return page;
}

void PagePool::release(int page) {
  if (--holders_[static_cast<std::size_t>(page)] > 0) return;
  free_.push_back(page);
  if (free_.size() < holders_.size()) return;
  free_.clear();  // nobody has a page: memory goes back to the system
  holders_.clear();
  slabs_.clear();
}

std::uint8_t* PagePool::data(int page) const {
  const std::size_t index = static_cast<std::size_t>(page);
  auto* slab = static_cast<std::uint8_t*>(slabs_[index / pages_a_slab_].data());
  return slab + index % pages_a_slab_ * page_bytes_;
}

std::size_t PagePool::bytes() const {
  std::size_t total = 0;
  for (const Memory& slab : slabs_) total += slab.bytes();
  return total;
}

int KVCache::open() {
  sequences_.emplace(next_, Sequence{});
  return next_++;
}

void KVCache::close(int sequence) {
  truncate(sequence, 0);
  sequences_.erase(sequence);
}

void KVCache::set_length(int sequence, int length) { sequences_.at(sequence).length = length; }

void KVCache::truncate(int sequence, int length) {
  Sequence& found = sequences_.at(sequence);
  if (length < 0 || length > found.length)
    throw std::invalid_argument("cannot truncate " + std::to_string(found.length) + " positions to " +
                                std::to_string(length));
  cut_pages(found, length);
}

void KVCache::cut_pages(Sequence& sequence, int length) {
  for (; sequence.pages.size() > pages_of(length); sequence.pages.pop_back()) pool_.release(sequence.pages.back());
  sequence.length = length;
}

void KVCache::fork(int source, int target, int length) {
  Sequence& from = sequences_.at(source);
  Sequence& to = sequences_.at(target);
  if (length < 0 || length > from.length)
    throw std::invalid_argument("cannot copy " + std::to_string(length) + " of " + std::to_string(from.length) +
                                " positions");
  if (source == target) return truncate(target, length);
  std::vector<int> pages(from.pages.begin(), from.pages.begin() + static_cast<std::ptrdiff_t>(pages_of(length)));
  for (const int page : pages) pool_.hold(page);
  cut_pages(to, 0);
  to.pages = std::move(pages);
  to.length = length;
}

void KVCache::prepare(int sequence, int end) {
  Sequence& found = sequences_.at(sequence);
  found.pages.reserve(pages_of(end));
  const std::size_t last = static_cast<std::size_t>(found.length / page_size);  // the page the next position is in
  if (found.length % page_size && end > found.length && pool_.shared(found.pages[last])) {
    const int copy = pool_.take();
    std::memcpy(pool_.data(copy), pool_.data(found.pages[last]), shape_.page_bytes());
    pool_.release(found.pages[last]);
    found.pages[last] = copy;
  }
  while (found.pages.size() < pages_of(end)) found.pages.push_back(pool_.take());
}

}  // namespace salmonrun

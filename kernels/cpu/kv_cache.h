// Keys and values of sequences, in pages of 64 positions that sequences may share.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "operations.h"

namespace salmonrun {

struct CacheShape {
  int layers, kv_heads, head_dim;
  CacheNumber number;

  // A page holds for each layer and KV head what AttentionTask says of it.
  std::size_t head_bytes() const {
    const std::size_t numbers = std::size_t{2} * page_size * static_cast<std::size_t>(head_dim);
    if (number == CacheNumber::half) return numbers * sizeof(std::uint16_t);
    return numbers + 2 * page_size * sizeof(float);
  }
  std::size_t page_bytes() const {
    return head_bytes() * static_cast<std::size_t>(layers) * static_cast<std::size_t>(kv_heads);
  }
};

// Pages that are taken and given back; a fork shares those of its source.
class PagePool {
 public:
  explicit PagePool(std::size_t page_bytes);

  int take();              // a page of unknown content, held once
  void hold(int page) { ++holders_[static_cast<std::size_t>(page)]; }
  void release(int page);
  bool shared(int page) const { return holders_[static_cast<std::size_t>(page)] > 1; }
  std::uint8_t* data(int page) const;
  std::size_t bytes() const;  // reserved

 private:
  void grow();

  std::size_t page_bytes_, pages_a_slab_;
  std::vector<Memory> slabs_;
  std::vector<int> holders_, free_;
};

class KVCache {
 public:
  explicit KVCache(const CacheShape& shape) : shape_(shape), pool_(shape.page_bytes()) {}

  // Sequences have numbers that are never used again; a number that is not open throws std::out_of_range.
  int open();
  void close(int sequence);
  int length(int sequence) const { return sequences_.at(sequence).length; }
  void set_length(int sequence, int length);  // of positions that were prepared
  void truncate(int sequence, int length);
  void fork(int source, int target, int length);

  // Makes positions up to `end` writable from the sequence's end on: pages that others share are copied.
  void prepare(int sequence, int end);
  const std::vector<int>& pages(int sequence) const { return sequences_.at(sequence).pages; }

  std::uint8_t* head(int page, int layer, int kv_head) const {
    return pool_.data(page) + static_cast<std::size_t>(layer * shape_.kv_heads + kv_head) * shape_.head_bytes();
  }
  const CacheShape& shape() const { return shape_; }
  std::size_t bytes() const { return pool_.bytes(); }

 private:
  struct Sequence {
    int length = 0;
    std::vector<int> pages;
  };

  void cut_pages(Sequence& sequence, int length);

  CacheShape shape_;
  PagePool pool_;
  std::unordered_map<int, Sequence> sequences_;
  int next_ = 0;
};

}  // namespace salmonrun

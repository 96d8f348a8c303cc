// Fetching keys and values before they are needed.
#pragma once

#include "../slots.h"
#include "tile.h"

namespace mqa::kernels::cpu {
namespace {

// Fetches the keys and values of the next piece of work into L2, a few lines at a time between
// pieces of work on this one: memory is never idle, and work need not wait for a place in the queue
// to it. The engines' numbers of lines together reach the end of a chunk in a decode step, for
// every shape.
class Ahead {
 public:
  Ahead(const AttentionParams& p, const Work& work)
      : p_(p), tile_(work.tile), next_(work.keys.begin), end_(work.keys.end) {}

  // gcc 12 takes a function that only prefetches for one without effect, unless it is inlined.
  [[gnu::always_inline]] void fetch(int64_t lines) {
    for (int64_t i = 0; i < lines; ++i) {
      if (line_ >= row_end_) next_row();
      __builtin_prefetch(line_, /*write=*/0, /*to L2=*/2);
      line_ += kLine;
    }
  }

  // For work that begins at once: in the order of memory, which the kernels do not read in.
  void fetch_all() {
    while (next_ < end_) fetch(1);
  }

 private:
  static constexpr int64_t kLine = 64;

  [[gnu::noinline]] void next_row() {
    if (next_ >= end_) {  // all done: what is on the stack costs nothing
      line_ = reinterpret_cast<const char*>(this);
      row_end_ = line_ + 64 * kLine;
      return;
    }
    const Cache& cache = is_value_ ? p_.value : p_.key;
    const int64_t size = size_of(cache.dtype), width = is_value_ ? p_.D_v : p_.D;
    const SlotPlace place = place_of(p_.block_table, tile_.batch, next_);
    line_ = static_cast<const char*>(cache.data) + row_offset(cache, place, tile_.kv_head) * size;
    row_end_ = line_ + width * size;
    next_ += is_value_;
    is_value_ = !is_value_;
  }

  const AttentionParams& p_;
  RowTile tile_;
  int64_t next_, end_;
  bool is_value_ = false;
  const char *line_ = nullptr, *row_end_ = nullptr;
};

}  // namespace
}  // namespace mqa::kernels::cpu

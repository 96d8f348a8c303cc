// Fetching keys and values before they are needed.
#pragma once

#include <algorithm>

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
      : p_(p), tile_(work.tile), keys_(work.keys), next_(keys_.begin) {
    next_run();
  }

  // gcc 12 takes a function that only prefetches for one without effect, unless it is inlined.
  [[gnu::always_inline]] void fetch(int64_t lines) {
    if (lines * kLine <= run_end_ - line_) {
      for (int64_t i = 0; i < lines; ++i) fetch_line(i);
      line_ += lines * kLine;
    } else if (line_) {
      fetch_from_runs(lines);
    }
  }

  // For work that begins at once: in the order of memory, which the kernels do not read in.
  void fetch_all() {
    while (line_) fetch_from_runs(1);
  }

 private:
  static constexpr int64_t kLine = 64;

  [[gnu::always_inline]] void fetch_line(int64_t i) const {
    __builtin_prefetch(line_ + i * kLine, /*write=*/0, /*to L2=*/2);
  }

  [[gnu::noinline]] void fetch_from_runs(int64_t lines) {
    for (; line_ && lines > 0; --lines) {
      fetch_line(0);
      line_ += kLine;
      if (line_ >= run_end_) next_run();
    }
  }

  // The next rows that lie side by side in memory: those of keys, then those of values. Without any
  // `line_` is null.
  void next_run() {
    if (next_ == keys_.end && !is_value_) next_ = keys_.begin, is_value_ = true;
    if (next_ >= keys_.end) {
      line_ = run_end_ = nullptr;
      return;
    }
    const Cache& cache = is_value_ ? p_.value : p_.key;
    const int64_t size = size_of(cache.dtype), width = is_value_ ? p_.D_v : p_.D;
    const SlotPlace place = place_of(p_.block_table, tile_.batch, next_);
    const int64_t rows = cache.slot_stride != width ? 1
                         : p_.block_table.pages     ? p_.block_table.page_size - place.slot
                                                    : keys_.end - next_;
    const int64_t run = std::min(rows, keys_.end - next_);
    line_ = static_cast<const char*>(cache.data) + row_offset(cache, place, tile_.kv_head) * size;
    run_end_ = line_ + run * width * size;
    next_ += run;
  }

  const AttentionParams& p_;
  RowTile tile_;
  KeyRange keys_;
  int64_t next_;
  bool is_value_ = false;
  const char *line_, *run_end_;
};

}  // namespace
}  // namespace mqa::kernels::cpu

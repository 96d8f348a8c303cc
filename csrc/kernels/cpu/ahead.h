// Fetching keys and values before they are needed.
#pragma once

#include <algorithm>
#include <array>

#include "../slots.h"
#include "tile.h"

namespace mqa::kernels::cpu {
namespace {

// A lead of whole pieces of work.
constexpr int64_t kWholeLead = 2 * kChunkKeys;

// Fetches keys and values into the cache before they are needed, a few lines at a time between
// pieces of work: memory is never idle, and work need not wait for a place in the queue to it. The
// engines ask for about as many lines as they read.
//
// It goes through the rows of a piece of work, keys and then values, from the lead on, which is
// there already, and through the lead of the next one. A short lead goes into L1.
template <int64_t kLead>
class Ahead {
 public:
  Ahead(const AttentionParams& p, const Work& work, const Work& next)
      : p_(p), works_{work, next}, pieces_(pieces()) {
    next_runs();
    fetch_scales(p.key);
    fetch_scales(p.value);
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
    while (line_) fetch(4);
  }

 private:
  static constexpr int64_t kLine = 64;

  [[gnu::always_inline]] void fetch_line(int64_t i) const {
    constexpr int kToL1 = 3, kToL2 = 2;
    __builtin_prefetch(line_ + i * kLine, /*write=*/0, kLead < kWholeLead ? kToL1 : kToL2);
  }

  // Of the next piece of work, which wants them all when it begins.
  [[gnu::always_inline]] void fetch_scales(const Cache& cache) const {
    const Scales& scales = cache.scales;
    if (scales.slot_stride == 0) return;  // none, or the same for all slots
    constexpr int64_t kLineScales = kLine / sizeof(float);
    const auto& [tile, keys] = works_[1];
    for (int64_t key = keys.begin, count; key < keys.end; key += count) {
      const SlotPlace place = place_of(p_.block_table, tile.batch, key);
      count = run_of_slots(p_.block_table, place, keys.end - key);
      const float* from = &scale_at(cache, place, tile.kv_head);
      for (int64_t i = 0; i < count; i += kLineScales) {
        __builtin_prefetch(from + i * scales.slot_stride);
      }
    }
  }

  [[gnu::noinline]] void fetch_from_runs(int64_t lines) {
    while (line_ && lines > 0) {
      const char* end = std::min(run_end_, line_ + lines * kLine);
      for (; line_ < end; line_ += kLine, --lines) fetch_line(0);
      if (line_ < run_end_) return;
      if (--runs_ > 0) {
        line_ = run_ += stride_;
        run_end_ = line_ + run_bytes_;
      } else {
        next_runs();
      }
    }
  }

  std::array<KeyRange, 4> pieces() const {
    const KeyRange now = works_[0].keys, then = works_[1].keys;
    const int64_t count = now.end - now.begin, next_count = then.end - then.begin;
    const int64_t next_keys = std::min(kLead, next_count);
    return {KeyRange{now.begin + std::min(kLead, count), now.end},
            KeyRange{now.begin + std::clamp<int64_t>(kLead - count, 0, count), now.end},
            KeyRange{then.begin, then.begin + next_keys},
            KeyRange{then.begin, then.begin + std::min(kLead - next_keys, next_count)}};
  }

  // The next rows at one distance in memory, which are one run if nothing lies between them.
  // Without any `line_` is null.
  void next_runs() {
    while (piece_ < 4 && pieces_[piece_].empty()) ++piece_;
    if (piece_ == 4) {
      line_ = run_end_ = nullptr;
      return;
    }
    KeyRange& keys = pieces_[piece_];
    const RowTile& tile = works_[piece_ / 2].tile;
    const bool is_value = piece_ % 2;
    const Cache& cache = is_value ? p_.value : p_.key;
    const int64_t together = cache.is_packed ? kPackedSlots : 1;  // slots that make up a row
    const int64_t size = size_of(cache.dtype), row = (is_value ? p_.D_v : p_.D) * together * size;
    const SlotPlace place = place_of(p_.block_table, tile.batch, keys.begin);
    const int64_t slots = run_of_slots(p_.block_table, place, keys.end - keys.begin);
    keys.begin += slots;
    const int64_t rows = (place.slot % together + slots + together - 1) / together;
    stride_ = cache.slot_stride * size;
    runs_ = stride_ == row ? 1 : rows;
    run_bytes_ = stride_ == row ? rows * row : row;
    run_ = static_cast<const char*>(cache.data) + row_offset(cache, place, tile.kv_head) * size;
    line_ = run_;
    run_end_ = run_ + run_bytes_;
  }

  const AttentionParams& p_;
  Work works_[2];
  std::array<KeyRange, 4> pieces_;  // keys and values of each that are still to be fetched
  int64_t piece_ = 0;
  const char *line_, *run_, *run_end_;
  int64_t runs_, run_bytes_, stride_;  // bytes
};

}  // namespace
}  // namespace mqa::kernels::cpu

// The driver of appends: which rows go to which slots, and on how many threads.
#include "append.h"

#include <algorithm>

#include "../slots.h"
#include "append_rows.h"

namespace mqa::kernels::cpu {
namespace {

using Side = AppendParams::Side;

// A thread's unit of work: so many slots from a multiple of them on, which splits no page or group
// of packed keys that need not be. For each head, a block's rows are read and written one after the
// other: long runs are good for the cache's side, short ones for a source that holds a token's
// heads together. 16 and 64 lose up to a tenth on the one or the other.
constexpr int64_t kBlockTokens = 32;

// Below this many bytes read and written, waking other threads costs more than it gains.
constexpr int64_t kSerialBytes = 1 << 18;

class Appender {
 public:
  explicit Appender(const AppendParams& p)
      : p_(p),
        store_key_(row_store_of(p.key)),
        store_value_(row_store_of(p.value)),
        blocks_((p.T + 2 * kBlockTokens - 2) / kBlockTokens) {}

  int64_t count() const { return p_.B * blocks_; }

  int64_t bytes() const { return bytes_of(p_.key) + bytes_of(p_.value); }

  void append_blocks(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / blocks_;
      const int64_t first = i % blocks_ * kBlockTokens - p_.positions[batch] % kBlockTokens;
      append_tokens(batch, std::max<int64_t>(first, 0), std::min(p_.T, first + kBlockTokens));
    }
  }

 private:
  static StoreRows row_store_of(const Side& side) {
    return row_store(side.source_dtype, side.cache.dtype, side.cache.is_packed);
  }

  int64_t bytes_of(const Side& side) const {
    return p_.B * p_.H_kv * p_.T * side.width *
           (size_of(side.source_dtype) + size_of(side.cache.dtype));
  }

  // By runs of tokens whose slots lie in one page.
  void append_tokens(int64_t batch, int64_t token, int64_t end) const {
    const BlockTable& table = p_.block_table;
    while (token < end) {
      const SlotPlace place = place_of(table, batch, p_.positions[batch] + token);
      const int64_t left = end - token;
      const int64_t count = run_of_slots(table, place, left);
      for (int64_t head = 0; head < p_.H_kv; ++head) {
        append_run(p_.key, store_key_, batch, head, token, place, count);
        append_run(p_.value, store_value_, batch, head, token, place, count);
      }
      token += count;
    }
  }

  static void append_run(const Side& side, StoreRows store, int64_t batch, int64_t head,
                         int64_t token, SlotPlace place, int64_t count) {
    const Cache& cache = side.cache;
    const int64_t from = batch * side.source_batch_stride + head * side.source_head_stride +
                         token * side.source_token_stride;
    const int64_t first_slot = cache.is_packed ? place.slot % kPackedSlots : 0;
    const int64_t to = row_offset(cache, place, head);
    store({.source = static_cast<const char*>(side.source) + from * size_of(side.source_dtype),
           .source_stride = side.source_token_stride,
           .cache = static_cast<char*>(cache.data) + to * size_of(cache.dtype),
           .cache_stride = cache.slot_stride,
           .first_slot = first_slot,
           .rows = count,
           .width = side.width,
           .scales = cache.scales.data ? &scale_at(cache, place, head) : nullptr,
           .scale_stride = cache.scales.slot_stride,
           .scale_given = side.scale_per_head});
  }

  const AppendParams& p_;
  StoreRows store_key_, store_value_;
  int64_t blocks_;  // of each batch row, at most
};

}  // namespace

void append(const AppendParams& params, const Threads& threads) {
  const Appender appender(params);
  if (appender.bytes() < kSerialBytes) return appender.append_blocks(0, appender.count());
  threads.parallel_for(appender.count(), [&appender](int64_t begin, int64_t end) {
    appender.append_blocks(begin, end);
  });
}

}  // namespace mqa::kernels::cpu

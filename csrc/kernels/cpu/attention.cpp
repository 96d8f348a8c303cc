// The attention driver: work items, chunks of keys, the fixed order in which partial results meet.
//
// A work item is (batch, KV head, tile of folded query rows). Its keys are cut into chunks at fixed
// absolute positions; each chunk gives a partial result, and the partials of a row are folded from
// the first chunk to the last. Whether the chunks of an item run one after the other or side by
// side changes nothing in that order, so a row's bits depend neither on the thread count nor on the
// batch.
#include "attention.h"

#include <algorithm>
#include <utility>

#include "buffer.h"
#include "tile.h"

namespace mqa::kernels::cpu {
namespace {

// Fewer items than this per thread are split over keys.
constexpr int64_t kItemsPerThread = 4;

// Heads that one thread takes through their chunks together.
constexpr int64_t kTogether = 8;

// Of chunk results that are held at a time, and the least number of chunks for each thread.
constexpr int64_t kWaveBytes = 4 << 20, kWaveChunks = 8;

// Below this many multiplications waking other threads costs more than it gains.
constexpr double kSerialWork = 1 << 17;

// Rows of a call's largest tile; engines take them sixteen at a time.
int64_t tile_rows(const AttentionParams& p) {
  return padded(std::min(kTileRows, p.H_q / p.H_kv * p.T));
}

template <class Acc>
int64_t partial_size(const AttentionParams& p) {
  return tile_rows(p) * (padded(p.D_v) + 2) * sizeof(Acc);  // whole cache lines
}

template <class Acc>
Partial<Acc> partial_at(const AttentionParams& p, char* memory) {
  Acc* out = reinterpret_cast<Acc*>(memory);
  Acc* max = out + tile_rows(p) * padded(p.D_v);
  return {out, max, max + tile_rows(p)};
}

// What one thread needs to attend some tiles to a chunk, one after the other.
template <class Acc>
class Workspace {
 public:
  Workspace(const AttentionParams& p, const TileOps<Acc>& ops, int64_t tiles)
      : p_(p), query_size_(ops.query_size(p)), total_size_(partial_size<Acc>(p)) {
    thread_local Buffer buffer;
    queries_ =
        buffer.reserve(tiles * (query_size_ + total_size_) + total_size_ + ops.scratch_size(p));
    totals_ = queries_ + tiles * query_size_;
    chunk_ = totals_ + tiles * total_size_;
    scratch_ = chunk_ + total_size_;
  }

  char* query(int64_t tile = 0) const { return queries_ + tile * query_size_; }
  Partial<Acc> total(int64_t tile) const {
    return partial_at<Acc>(p_, totals_ + tile * total_size_);
  }
  Partial<Acc> chunk() const { return partial_at<Acc>(p_, chunk_); }
  char* scratch() const { return scratch_; }

 private:
  const AttentionParams& p_;
  int64_t query_size_, total_size_;
  char *queries_, *totals_, *chunk_, *scratch_;
};

// The work items of a call, and the chunks of each.
class Items {
 public:
  explicit Items(const AttentionParams& p)
      : p_(p),
        group_(p.H_q / p.H_kv),
        rows_(group_ * p.T),
        tiles_(ceil_div(rows_, kTileRows)),
        count_(p.B * p.H_kv * tiles_) {}

  int64_t count() const { return count_; }

  RowTile operator[](int64_t item) const {
    // Under a causal mask later tiles cost more: pair them with early ones, so that equal ranges of
    // items are about equal work.
    const int64_t i = item % tiles_, head = item / tiles_;
    const int64_t tile = i % 2 ? tiles_ - 1 - i / 2 : i / 2;
    const int64_t first_row = tile * kTileRows;
    return {head / p_.H_kv, head % p_.H_kv, first_row, std::min(kTileRows, rows_ - first_row)};
  }

  // How many of the items from `item` on, before `end`, go through their chunks together: heads
  // whose slots lie side by side. One after the other would come by the same pages of memory each
  // time.
  int64_t together(int64_t item, int64_t end) const {
    const bool side_by_side = p_.key.head_stride < p_.key.slot_stride && tiles_ == 1;
    const int64_t batch_end = (item / p_.H_kv + 1) * p_.H_kv;
    return side_by_side ? std::min({kTogether, end - item, batch_end - item}) : 1;
  }

  // Numbers of the chunks that hold what the tile sees.
  KeyRange chunks(const RowTile& tile) const {
    const KeyRange seen = keys(tile);
    if (seen.empty()) return {0, 0};
    return {seen.begin / kChunkKeys, ceil_div(seen.end, kChunkKeys)};
  }

  Work work(const RowTile& tile, int64_t chunk) const {
    return {tile, intersect(keys(tile), {chunk * kChunkKeys, (chunk + 1) * kChunkKeys})};
  }

 private:
  KeyRange keys(const RowTile& tile) const {
    return visible_keys(p_, tile.batch, tile.first_row / group_,
                        (tile.first_row + tile.rows - 1) / group_);
  }

  const AttentionParams& p_;
  int64_t group_, rows_, tiles_, count_;
};

// One thread takes an item, or some heads', through all chunks.
template <class Acc>
void attend_items(const AttentionParams& p, const Threads& threads, const Items& items) {
  const TileOps<Acc>& ops = tile_ops<Acc>(p);
  threads.parallel_for(items.count(), [&](int64_t begin, int64_t end) {
    const Workspace<Acc> w(p, ops, items.together(0, items.count()));
    const auto first_work = [&](int64_t item) {
      if (item == end) return Work{};
      return items.work(items[item], items.chunks(items[item]).begin);
    };
    Work next = first_work(begin);
    ops.fetch_lead(p, next);
    for (int64_t i = begin, count; i < end; i += count) {
      count = items.together(i, end);
      const KeyRange chunks = items.chunks(items[i]);
      if (chunks.empty()) next = first_work(i + count);
      for (int64_t k = 0; k < count; ++k) {
        if (chunks.empty()) ops.clear(p, items[i + k].rows, w.total(k));
        ops.pack_queries(p, items[i + k], w.query(k));
      }
      for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
        const bool first = chunk == chunks.begin;  // folding it into nothing would not change a bit
        for (int64_t k = 0; k < count; ++k) {
          const Work work = next;
          next = k + 1 < count            ? items.work(items[i + k + 1], chunk)
                 : chunk + 1 < chunks.end ? items.work(items[i], chunk + 1)
                                          : first_work(i + count);
          ops.attend(p, work, next, w.query(k), w.scratch(), first ? w.total(k) : w.chunk());
          if (!first) ops.fold(p, work.tile.rows, w.chunk(), w.total(k));
        }
      }
      for (int64_t k = 0; k < count; ++k) ops.finish(p, items[i + k], w.total(k));
    }
  });
}

// Few items: their chunks run side by side, in waves that bound the memory for their results.
template <class Acc>
void attend_chunks(const AttentionParams& p, const Threads& threads, const Items& items,
                   int64_t max_chunks) {
  const TileOps<Acc>& ops = tile_ops<Acc>(p);
  const int64_t held = std::max(kWaveBytes / partial_size<Acc>(p), kWaveChunks * threads.count);
  const int64_t wave = std::min(max_chunks, ceil_div(held, items.count()));
  thread_local Buffer buffer;
  char* partials = buffer.reserve(items.count() * (wave + 1) * partial_size<Acc>(p));
  const auto partial = [&](int64_t item, int64_t index) {  // index `wave`: the item's total
    return partial_at<Acc>(p, partials + (item * (wave + 1) + index) * partial_size<Acc>(p));
  };
  for (int64_t i = 0; i < items.count(); ++i) ops.clear(p, items[i].rows, partial(i, wave));

  for (int64_t first = 0; first < max_chunks; first += wave) {
    threads.parallel_for(items.count() * wave, [&](int64_t begin, int64_t end) {
      const Workspace<Acc> w(p, ops, 1);
      const auto work_at = [&](int64_t i) {  // without keys where an item has fewer chunks
        if (i == end) return Work{};
        const RowTile tile = items[i / wave];
        return items.work(tile, items.chunks(tile).begin + first + i % wave);
      };
      Work next = work_at(begin);
      ops.fetch_lead(p, next);
      int64_t packed = -1;
      for (int64_t i = begin; i < end; ++i) {
        const Work work = std::exchange(next, work_at(i + 1));
        if (work.keys.empty()) continue;
        if (std::exchange(packed, i / wave) != i / wave) ops.pack_queries(p, work.tile, w.query());
        ops.attend(p, work, next, w.query(), w.scratch(), partial(i / wave, i % wave));
      }
    });
    threads.parallel_for(items.count(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const RowTile tile = items[i];
        const KeyRange chunks = items.chunks(tile);
        const int64_t done = std::min(wave, chunks.end - chunks.begin - first);
        for (int64_t c = 0; c < done; ++c) ops.fold(p, tile.rows, partial(i, c), partial(i, wave));
      }
    });
  }
  for (int64_t i = 0; i < items.count(); ++i) ops.finish(p, items[i], partial(i, wave));
}

template <class Acc>
void run(const AttentionParams& p, const Threads& threads) {
  const Items items(p);
  if (threads.count > 1 && items.count() < kItemsPerThread * threads.count) {
    int64_t max_chunks = 0;
    for (int64_t i = 0; i < items.count(); ++i) {
      const KeyRange chunks = items.chunks(items[i]);
      max_chunks = std::max(max_chunks, chunks.end - chunks.begin);
    }
    if (max_chunks > 1) return attend_chunks<Acc>(p, threads, items, max_chunks);
  }
  attend_items<Acc>(p, threads, items);
}

}  // namespace

void attention(const AttentionParams& params, const Threads& threads) {
  if (params.B == 0 || params.H_q == 0 || params.T == 0) return;
  const double work = 1. * params.B * params.H_q * params.T * params.S * (params.D + params.D_v);
  const Threads serial;
  const Threads& used = work < kSerialWork ? serial : threads;
  if (params.dtype == DType::kFloat64) return run<double>(params, used);
  return run<float>(params, used);
}

}  // namespace mqa::kernels::cpu

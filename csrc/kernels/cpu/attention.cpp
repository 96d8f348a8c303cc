// The attention driver: work items, chunks of keys, the fixed order in which partial results meet.
//
// A work item is (batch, KV head, tile of folded query rows). Its keys are cut into chunks at fixed
// absolute positions; each chunk gives a partial result, and the partials of a row are folded from
// the first chunk to the last. Whether the chunks of an item run one after the other or side by
// side changes nothing in that order, so a row's bits depend neither on the thread count nor on the
// batch.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "../formats.h"
#include "tile.h"

namespace mqa::kernels::cpu {
namespace {

constexpr int64_t kChunkKeys = 512;
// Fewer items than this per thread are split over keys; twice as many chunk results are held.
constexpr int64_t kItemsPerThread = 4;

// Below this many multiplications waking other threads costs more than it gains.
constexpr double kSerialWork = 1 << 17;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A growing, cache-line-aligned buffer that each thread keeps from call to call.
template <class Acc>
class Buffer {
 public:
  Acc* reserve(int64_t count) {
    if (count > capacity_) {
      memory_.reset();  // never hold both
      const size_t bytes = static_cast<size_t>(ceil_div(count * sizeof(Acc), 64) * 64);
      memory_.reset(static_cast<Acc*>(std::aligned_alloc(64, bytes)));
      capacity_ = memory_ ? count : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(Acc* memory) const { std::free(memory); }
  };
  std::unique_ptr<Acc, Free> memory_;
  int64_t capacity_ = 0;
};

// Hands out consecutive pieces of a buffer, each on its own cache line.
template <class Acc>
class Pieces {
 public:
  explicit Pieces(Acc* next) : next_(next) {}
  Acc* take(int64_t count) { return std::exchange(next_, next_ + padded(count)); }

 private:
  Acc* next_;
};

template <class Acc>
int64_t partial_size(const AttentionParams& p) {
  return kTileRows * (padded(p.D_v) + 2);
}

template <class Acc>
Partial<Acc> take_partial(const AttentionParams& p, Pieces<Acc>& pieces) {
  return {pieces.take(kTileRows * padded(p.D_v)), pieces.take(kTileRows), pieces.take(kTileRows)};
}

// What one thread needs to attend a tile to a chunk.
template <class Acc>
struct Workspace {
  Acc* query;
  TileScratch<Acc> tile;
  Partial<Acc> chunk, total;

  static Workspace get(const AttentionParams& p) {
    thread_local Buffer<Acc> buffer;
    const int64_t widths = padded(p.D) + padded(p.D_v);
    const int64_t size = kTileRows * padded(p.D) + kBlockKeys * (widths + kTileRows) + widths +
                         2 * partial_size<Acc>(p);
    Pieces<Acc> pieces(buffer.reserve(size));
    Workspace w;
    w.query = pieces.take(kTileRows * padded(p.D));
    w.tile = {pieces.take(kBlockKeys * padded(p.D)), pieces.take(kBlockKeys * padded(p.D_v)),
              pieces.take(kTileRows * kBlockKeys), pieces.take(widths)};
    std::fill_n(w.tile.zeros, widths, Acc{0});
    w.chunk = take_partial(p, pieces);
    w.total = take_partial(p, pieces);
    return w;
  }
};

// total += part, both brought to the common maximum. A part that saw nothing changes nothing.
template <class Acc>
void fold(const AttentionParams& p, int64_t rows, const Partial<Acc>& part,
          const Partial<Acc>& total) {
  const int64_t width = padded(p.D_v);
  for (int64_t r = 0; r < rows; ++r) {
    const Acc max = std::max(total.max[r], part.max[r]);
    const Acc base = max == kMinusInfinity<Acc> ? 0 : max;  // -inf - -inf would be NaN
    const Acc keep = std::exp(total.max[r] - base), add = std::exp(part.max[r] - base);
    total.max[r] = max;
    total.sum[r] = total.sum[r] * keep + part.sum[r] * add;
    Acc* out = total.out + r * width;
    const Acc* part_out = part.out + r * width;
    for (int64_t d = 0; d < width; ++d) out[d] = out[d] * keep + part_out[d] * add;
  }
}

// Adds the sink, divides by the sum and stores out and lse.
template <class Acc>
void finish(const AttentionParams& p, const RowTile& tile, const Partial<Acc>& total) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    const auto [head, token] = row_of(p, tile, r);
    const int64_t row = (tile.batch * p.H_q + head) * p.T + token;
    Acc max = total.max[r], sum = total.sum[r], factor = 1;
    const Acc sink = p.sinks ? static_cast<const Acc*>(p.sinks)[head] : kMinusInfinity<Acc>;
    if (sink > kMinusInfinity<Acc>) {
      const Acc base = std::max(max, sink);
      factor = std::exp(max - base);
      sum = sum * factor + std::exp(sink - base);
      max = base;
    }
    const Acc divisor = sum == 0 ? 1 : sum;  // nothing seen: out is zero already
    Acc* out = total.out + r * padded(p.D_v);
    for (int64_t d = 0; d < p.D_v; ++d) out[d] *= factor;
    store_row(p.dtype, p.out, row * p.D_v, p.D_v, divisor, out);
    if (p.lse) static_cast<Acc*>(p.lse)[row] = max + std::log(sum);
  }
}

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

  KeyRange keys(const RowTile& tile) const {
    return visible_keys(p_, tile.batch, tile.first_row / group_,
                        (tile.first_row + tile.rows - 1) / group_);
  }

 private:
  const AttentionParams& p_;
  int64_t group_, rows_, tiles_, count_;
};

KeyRange chunks_of(KeyRange keys) {
  if (keys.empty()) return {0, 0};
  return {keys.begin / kChunkKeys, ceil_div(keys.end, kChunkKeys)};
}

KeyRange chunk_keys(KeyRange keys, int64_t chunk) {
  return intersect(keys, {chunk * kChunkKeys, (chunk + 1) * kChunkKeys});
}

// One thread takes an item through all its chunks.
template <class Acc>
void attend_items(const AttentionParams& p, const Threads& threads, const Items& items) {
  const TileOps<Acc>& ops = tile_ops<Acc>();
  threads.parallel_for(items.count(), [&](int64_t begin, int64_t end) {
    const Workspace<Acc> w = Workspace<Acc>::get(p);
    for (int64_t i = begin; i < end; ++i) {
      const RowTile tile = items[i];
      const KeyRange keys = items.keys(tile), chunks = chunks_of(keys);
      ops.load_queries(p, tile, w.query);
      clear(w.total, tile.rows, padded(p.D_v));
      for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
        ops.attend(p, tile, chunk_keys(keys, chunk), w.query, w.tile, w.chunk);
        fold(p, tile.rows, w.chunk, w.total);
      }
      finish(p, tile, w.total);
    }
  });
}

// Few items: their chunks run side by side, in waves that bound the memory for their results.
template <class Acc>
void attend_chunks(const AttentionParams& p, const Threads& threads, const Items& items,
                   int64_t max_chunks) {
  const TileOps<Acc>& ops = tile_ops<Acc>();
  const int64_t wave =
      std::min(max_chunks, ceil_div(2 * kItemsPerThread * threads.count, items.count()));
  thread_local Buffer<Acc> buffer;
  Acc* partials = buffer.reserve(items.count() * (wave + 1) * partial_size<Acc>(p));
  const auto partial = [&](int64_t item, int64_t index) {  // index `wave`: the item's total
    Pieces<Acc> pieces(partials + (item * (wave + 1) + index) * partial_size<Acc>(p));
    return take_partial(p, pieces);
  };
  for (int64_t i = 0; i < items.count(); ++i) {
    clear(partial(i, wave), items[i].rows, padded(p.D_v));
  }

  for (int64_t first = 0; first < max_chunks; first += wave) {
    threads.parallel_for(items.count() * wave, [&](int64_t begin, int64_t end) {
      const Workspace<Acc> w = Workspace<Acc>::get(p);
      for (int64_t i = begin; i < end; ++i) {
        const RowTile tile = items[i / wave];
        const KeyRange keys = items.keys(tile), chunks = chunks_of(keys);
        const int64_t chunk = chunks.begin + first + i % wave;
        if (chunk >= chunks.end) continue;
        ops.load_queries(p, tile, w.query);
        ops.attend(p, tile, chunk_keys(keys, chunk), w.query, w.tile, partial(i / wave, i % wave));
      }
    });
    threads.parallel_for(items.count(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const RowTile tile = items[i];
        const KeyRange chunks = chunks_of(items.keys(tile));
        const int64_t done = std::min(wave, chunks.end - chunks.begin - first);
        for (int64_t c = 0; c < done; ++c) fold(p, tile.rows, partial(i, c), partial(i, wave));
      }
    });
  }
  for (int64_t i = 0; i < items.count(); ++i) finish(p, items[i], partial(i, wave));
}

template <class Acc>
void run(const AttentionParams& p, const Threads& threads) {
  const Items items(p);
  if (threads.count > 1 && items.count() < kItemsPerThread * threads.count) {
    int64_t max_chunks = 0;
    for (int64_t i = 0; i < items.count(); ++i) {
      const KeyRange chunks = chunks_of(items.keys(items[i]));
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

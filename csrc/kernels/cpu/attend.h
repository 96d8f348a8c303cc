// One tile of query rows against one chunk of keys, over an Engine that multiplies matrices:
// scores, options, softmax, weighted values.
//
// The bit contract lives here. Sums over D and over the keys of a chunk have one order, whatever
// the number of rows, and a key that a row does not see contributes an exact zero.
#pragma once

#include <utility>

#include "ahead.h"
#include "cache_tiles.h"
#include "partial.h"

namespace mqa::kernels::cpu {
namespace {

// Consecutive groups of 16 rows that an engine takes at once, and what they see of a chunk; keys
// count from the chunk's start.
struct RowGroups {
  int64_t first, count;
  KeyRange seen;  // by some row
  KeyRange span;  // whole tiles of keys around it
};

inline int64_t token_of(const AttentionParams& p, const RowTile& tile, int64_t row) {
  return (tile.first_row + std::min(row, tile.rows - 1)) / (p.H_q / p.H_kv);
}

// `keys` lie in one chunk; spans are multiples of `span_keys`.
inline RowGroups see(const AttentionParams& p, const RowTile& tile, KeyRange keys, int64_t first,
                     int64_t count, int64_t span_keys) {
  const int64_t chunk = chunk_start(keys);
  const KeyRange seen =
      intersect(keys, visible_keys(p, tile.batch, token_of(p, tile, first * kGroupRows),
                                   token_of(p, tile, (first + count) * kGroupRows - 1)));
  const KeyRange here{seen.begin - chunk, seen.end - chunk};
  return {first, count, here, whole_tiles(here, span_keys)};
}

// Hands out consecutive pieces of memory, each on its own cache line.
class Pieces {
 public:
  explicit Pieces(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const uintptr_t piece = next_;
    next_ += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  uintptr_t next() const { return next_; }

 private:
  uintptr_t next_;
};

// An Engine provides
//   Acc, Layout (of scores), kGroups (that it takes at once), kSpanKeys (a span's multiple)
//   kLead (of Ahead)
//   Engine(params, work, next, query, scratch)
//   find_keys(), find_values(used)     used: null, or a flag for each slot of the chunk
//   score(groups)                      query . key for the span
//   scores(group)                      where it has stored them
//   key_scales()                       that they lack, for each slot of the chunk, or null
//   weigh(groups, scale, partial)      softmax over the span, weighted values over what is seen
template <class Engine>
class Attend {
 public:
  using Acc = typename Engine::Acc;
  using Layout = typename Engine::Layout;

  Attend(const AttentionParams& p, const Work& work, const Work& next, const void* query,
         void* scratch, const Partial<Acc>& partial)
      : p_(p),
        tile_(work.tile),
        keys_(work.keys),
        chunk_(chunk_start(work.keys)),
        engine_(p, work, next, query, scratch),
        partial_(partial) {}

  void run() {
    engine_.find_keys();
    bool have_values = false;  // scoring the first rows fetches them
    for (int64_t first = 0; first * kGroupRows < tile_.rows; first += Engine::kGroups) {
      const RowGroups some = see_together(first);
      if (some.seen.empty()) {
        clear(p_, some.count * kGroupRows, at_group(first));
        continue;
      }
      score(some);
      if (!std::exchange(have_values, true)) engine_.find_values(nullptr);
      engine_.weigh(some, softmax_scale<Acc>(p_), at_group(first));
    }
    if (finite(partial_.out, tile_.rows)) return;
    for (int64_t r = 0; r < tile_.rows; ++r) {
      if (!finite(partial_.out + r * padded(p_.D_v), 1)) repair(r);
    }
  }

 private:
  Partial<Acc> at_group(int64_t group) const {
    const int64_t row = group * kGroupRows;
    return {partial_.out + row * padded(p_.D_v), partial_.max + row, partial_.sum + row};
  }

  int64_t token(int64_t row) const { return token_of(p_, tile_, row); }

  RowGroups see(int64_t first, int64_t count) const {
    return cpu::see(p_, tile_, keys_, first, count, Engine::kSpanKeys);
  }

  RowGroups see_together(int64_t first) const {
    const int64_t groups = (tile_.rows + kGroupRows - 1) / kGroupRows;
    return see(first, std::min<int64_t>(Engine::kGroups, groups - first));
  }

  void score(const RowGroups& some) {
    engine_.score(some);
    for (int64_t g = some.first; g < some.first + some.count; ++g) {
      const int64_t row = g * kGroupRows, rows = Layout::kRowStride == 1
                                                     ? kGroupRows
                                                     : std::min(kGroupRows, tile_.rows - row);
      Acc* scores = engine_.scores(g - some.first);
      if (const Acc* scales = engine_.key_scales()) {
        apply_key_scales<Layout>(rows, some.span, scales, scores);
      }
      if (!scale_only<Acc>(p_)) {
        apply_options<Layout>(p_, tile_, row, rows, chunk_, some.span, some.seen, scores);
      }
      const KeyRange by_all{
          visible_keys(p_, tile_.batch, token(row + kGroupRows - 1)).begin - chunk_,
          visible_keys(p_, tile_.batch, token(row)).end - chunk_};
      if (by_all.begin > some.span.begin || by_all.end < some.span.end) {
        hide_unseen<Layout>(p_, tile_, row, rows, chunk_, some.span, scores);
      }
    }
  }

  bool finite(const Acc* out, int64_t rows) const {
    Vector<Acc> zeros = {};  // x * 0 is 0 for finite x, else NaN
    for (int64_t d = 0; d < rows * padded(p_.D_v); d += kLanes<Acc>) {
      zeros += load(out + d) * Acc{0};
    }
    Acc sum = 0;
    for (int i = 0; i < kLanes<Acc>; ++i) sum += zeros[i];
    return sum == 0;
  }

  // A value may be NaN or infinite where a row does not see it, and 0 * NaN is NaN. That is rare,
  // so all rows share their values until one's result is not finite: it then gets zeros for what is
  // hidden from it.
  void repair(int64_t row) {
    const int64_t group = row / kGroupRows, r = row % kGroupRows;
    const RowGroups some = see(group, 1);
    if (some.seen.empty()) return;
    score(some);
    const KeyRange shared = see_together(group / Engine::kGroups * Engine::kGroups).span;
    bool used[kChunkKeys] = {};
    bool hides = shared.begin < some.seen.begin || shared.end > some.seen.end;
    for (int64_t j = some.seen.begin; j < some.seen.end; ++j) {
      used[j] =
          engine_.scores(0)[r * Layout::kRowStride + j * Layout::kKeyStride] != kMinusInfinity<Acc>;
      hides |= !used[j];
    }
    if (!hides) return;
    engine_.find_values(used);
    const Partial<Acc> spare = engine_.spare();
    engine_.weigh(some, softmax_scale<Acc>(p_), spare);
    const int64_t width = padded(p_.D_v);
    std::copy_n(spare.out + r * width, width, partial_.out + row * width);
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  KeyRange keys_;
  int64_t chunk_;
  Engine engine_;
  const Partial<Acc>& partial_;
};

template <int64_t kLead>
void fetch_lead(const AttentionParams& p, const Work& work) {
  Ahead<kLead>(p, {}, work).fetch_all();
}

template <class Engine>
void attend(const AttentionParams& p, const Work& work, const Work& next, const void* query,
            void* scratch, const Partial<typename Engine::Acc>& partial) {
  Attend<Engine>(p, work, next, query, scratch, partial).run();
  clear_upper_lanes();
}

}  // namespace
}  // namespace mqa::kernels::cpu

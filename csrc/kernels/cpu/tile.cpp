// One tile of query rows against one chunk of keys: scores, mask, online softmax, weighted values.
//
// Portable code over the widest vector of the ISA it is compiled for; MQA_ISA names that ISA.
//
// The bit contract lives here. The sums over D (lanes, then a fixed tree), over the keys of a block
// (lanes) and over blocks (in order) do not depend on how many rows or keys are handled at once,
// and a key that a row does not see contributes an exact zero.
//
// Where the time goes: scores are dot products with the lanes along D, so no transposition of the
// keys. Each needs a sum over lanes; taken for a vector of scores at once those cost about as much
// as the products at D = 64 and half of that at D = 128.
#include "tile.h"

#include <cmath>

#include "../formats.h"
#include "../slots.h"
#include "simd.h"

namespace mqa::kernels::cpu {
namespace {

constexpr int kMicroRows = kVectorRegisters == 32 ? 4 : 2;
constexpr int kMicroColumns = 4;  // vectors of the value's width

template <class Acc>
constexpr DType kNative = sizeof(Acc) == 8 ? DType::kFloat64 : DType::kFloat32;

template <class Acc>
void load_queries(const AttentionParams& p, const RowTile& tile, Acc* query) {
  const int64_t stride = padded(p.D);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const Row row = row_of(p, tile, r);
    const int64_t offset = tile.batch * p.query_batch_stride + row.head * p.query_head_stride +
                           row.token * p.query_token_stride;
    Acc* to = query + r * stride;
    load_row(p.dtype, p.query, offset, p.D, 1.f, to);
    for (int64_t d = p.D; d < stride; ++d) to[d] = 0;
  }
  clear_upper_lanes();
}

void locate_slots(const AttentionParams& p, int64_t batch, KeyRange keys, SlotPlace* places) {
  const BlockTable& table = p.block_table;
  if (!table.pages) {
    for (int64_t j = keys.begin; j < keys.end; ++j) *places++ = {batch, j};
    return;
  }
  int64_t page = keys.begin / table.page_size, slot = keys.begin % table.page_size;
  for (int64_t j = keys.begin; j < keys.end; ++page, slot = 0) {
    const int64_t row = page_at(table, batch, page);
    for (; slot < table.page_size && j < keys.end; ++slot, ++j) *places++ = {row, slot};
  }
}

// Points at rows that can be read in place, converts the others into `buffer`.
template <class Acc>
void gather_rows(const Cache& cache, int64_t head, const SlotPlace* places, int64_t count,
                 int64_t width, Acc* buffer, const Acc** rows) {
  const int64_t stride = padded(width);
  const bool in_place = cache.dtype == kNative<Acc> && width == stride;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t offset = row_offset(cache, places[j], head);
    if (in_place) {
      rows[j] = static_cast<const Acc*>(cache.data) + offset;
      continue;
    }
    const float scale = cache.scales.data ? scale_at(cache, places[j], head) : 1.f;
    Acc* to = buffer + j * stride;
    load_row(cache.dtype, cache.data, offset, width, scale, to);
    for (int64_t d = width; d < stride; ++d) to[d] = 0;
    rows[j] = to;
  }
}

// scores[r][k] = query[r] . keys[k] for as many pairs as a vector has lanes.
template <int kRows, class Acc>
void score_micro_tile(const Acc* query, int64_t stride, const Acc* const* keys, Acc* scores) {
  constexpr int kKeys = kLanes<Acc> / kRows;
  Vector<Acc> sums[kRows * kKeys];
  for (Vector<Acc>& sum : sums) sum = Vector<Acc>{};  // `= {}` would be a memset
  for (int64_t d = 0; d < stride; d += kLanes<Acc>) {
    Vector<Acc> key[kKeys];
    for (int k = 0; k < kKeys; ++k) key[k] = load(keys[k] + d);
    for (int r = 0; r < kRows; ++r) {
      const Vector<Acc> q = load(query + r * stride + d);
      for (int k = 0; k < kKeys; ++k) {
        sums[r * kKeys + k] = multiply_add(q, key[k], sums[r * kKeys + k]);
      }
    }
  }
  Acc dots[kLanes<Acc>];
  store(dots, sum_lanes_of_each<Acc>(sums));
  for (int r = 0; r < kRows; ++r) {
    std::memcpy(scores + r * kBlockKeys, dots + r * kKeys, kKeys * sizeof(Acc));
  }
}

template <int kRows, class Acc>
void score_rows(const Acc* query, int64_t stride, const Acc* const* keys, Acc* scores) {
  for (int64_t k = 0; k < kBlockKeys; k += kLanes<Acc> / kRows) {
    score_micro_tile<kRows>(query, stride, keys + k, scores + k);
  }
}

// out[r] += sum_j weights[r][j] values[j], over kColumns vectors, in the order of the keys.
template <int kRows, int kColumns, bool kSkipZeros, class Acc>
void weigh_micro_tile(const Acc* weights, KeyRange block, const Acc* const* values, int64_t column,
                      Acc* out, int64_t stride) {
  Vector<Acc> sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) sums[r][c] = load(out + r * stride + c * kLanes<Acc>);
  }
  for (int64_t j = block.begin; j < block.end; ++j) {
    Vector<Acc> value[kColumns];
    for (int c = 0; c < kColumns; ++c) value[c] = load(values[j] + column + c * kLanes<Acc>);
    for (int r = 0; r < kRows; ++r) {
      const Acc weight = weights[r * kBlockKeys + j];
      if (kSkipZeros && weight == 0) continue;
      for (int c = 0; c < kColumns; ++c) {
        sums[r][c] = multiply_add(broadcast(weight), value[c], sums[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) store(out + r * stride + c * kLanes<Acc>, sums[r][c]);
  }
}

template <int kRows, class Acc>
void weigh_rows(const Acc* weights, KeyRange block, const Acc* const* values, bool skip_zeros,
                Acc* out, int64_t stride) {
  constexpr int64_t kWide = kMicroColumns * kLanes<Acc>;
  int64_t column = 0;
  for (; column + kWide <= stride; column += kWide) {
    (skip_zeros ? weigh_micro_tile<kRows, kMicroColumns, true, Acc>
                : weigh_micro_tile<kRows, kMicroColumns, false, Acc>)(weights, block, values,
                                                                      column, out + column, stride);
  }
  for (; column < stride; column += kLanes<Acc>) {
    (skip_zeros ? weigh_micro_tile<kRows, 1, true, Acc>
                : weigh_micro_tile<kRows, 1, false, Acc>)(weights, block, values, column,
                                                          out + column, stride);
  }
}

// Calls body.template operator()<n>(row) so that the n cover [0, rows).
template <class Body>
void for_micro_rows(int64_t rows, const Body& body) {
  int64_t row = 0;
  for (; row + kMicroRows <= rows; row += kMicroRows) body.template operator()<kMicroRows>(row);
  for (; row < rows; ++row) body.template operator()<1>(row);
}

// Adds attn_mask to a row's scores; a hidden key's score becomes -inf, whatever it was.
template <class Acc>
void apply_mask(const Mask& mask, int64_t offset, KeyRange block, Acc* scores) {
  if (mask.dtype == DType::kBool) {
    const auto* attends = static_cast<const bool*>(mask.data) + offset;
    for (int64_t j = block.begin; j < block.end; ++j) {
      if (!attends[j * mask.key_stride]) scores[j] = kMinusInfinity<Acc>;
    }
    return;
  }
  with_format(mask.dtype, [&](auto format) {
    const auto* bias = static_cast<const typename decltype(format)::Storage*>(mask.data) + offset;
    for (int64_t j = block.begin; j < block.end; ++j) {
      const Acc added = static_cast<Acc>(format.widen(bias[j * mask.key_stride]));
      scores[j] = added == kMinusInfinity<Acc> ? added : scores[j] + added;
    }
  });
}

// Turns dot products with the keys first_key + [0, kBlockKeys) into what enters the softmax: -inf
// for keys the row does not see.
template <class Acc>
void finish_scores(const AttentionParams& p, int64_t batch, Row row, int64_t first_key,
                   KeyRange seen, Acc* scores) {
  for (int64_t j = 0; j < kBlockKeys; ++j) scores[j] *= static_cast<Acc>(p.scale);
  if (p.softcap > 0) {
    const Acc cap = static_cast<Acc>(p.softcap);
    for (int64_t j = 0; j < kBlockKeys; j += kLanes<Acc>) {
      store(scores + j, tanh_of(load(scores + j) / cap) * cap);
    }
  }
  if (p.alibi_slopes) {
    const Acc slope = static_cast<const Acc*>(
        p.alibi_slopes)[batch * p.alibi_batch_stride + row.head * p.alibi_head_stride];
    const int64_t at = diagonal(p, batch, row.token) - first_key;
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      scores[j] -= slope * static_cast<Acc>(std::abs(at - j));
    }
  }
  if (p.mask.data) {
    const int64_t offset = batch * p.mask.batch_stride + row.head * p.mask.head_stride +
                           row.token * p.mask.query_stride + first_key * p.mask.key_stride;
    apply_mask(p.mask, offset, seen, scores);
  }
  for (int64_t j = 0; j < kBlockKeys; ++j) {
    if (j < seen.begin || j >= seen.end) scores[j] = kMinusInfinity<Acc>;
  }
}

// Replaces a block's scores by weights exp(score - max) and rescales the row's partial to the new
// maximum. Where the maximum did not move the factor is exp(0), exactly 1.
template <class Acc>
void online_softmax(Acc* scores, Acc* max, Acc* sum, Acc* out, int64_t width) {
  Vector<Acc> maxima = broadcast(*max);
  for (int64_t j = 0; j < kBlockKeys; j += kLanes<Acc>) maxima = maximum(load(scores + j), maxima);
  const Acc new_max = max_lanes<Acc>(maxima);
  const Acc base = new_max == kMinusInfinity<Acc> ? 0 : new_max;  // -inf - -inf would be NaN
  const Acc factor = exp_nonpositive(broadcast(*max - base))[0];

  Vector<Acc> sums = {};
  for (int64_t j = 0; j < kBlockKeys; j += kLanes<Acc>) {
    const Vector<Acc> weights = exp_nonpositive(load(scores + j) - base);
    store(scores + j, weights);
    sums += weights;
  }
  *sum = *sum * factor + sum_lanes<Acc>(sums);
  *max = new_max;
  if (factor == 1) return;
  for (int64_t d = 0; d < width; d += kLanes<Acc>) store(out + d, load(out + d) * factor);
}

template <class Acc>
bool all_finite(const Acc* x, int64_t count) {
  Vector<Acc> zeros = {};  // x * 0 is 0 for finite x, else NaN
  for (int64_t i = 0; i < count; i += kLanes<Acc>) zeros += load(x + i) * Acc{0};
  return sum_lanes<Acc>(zeros) == 0;
}

template <class Acc>
void attend_once(const AttentionParams& p, const RowTile& tile, KeyRange keys, const Acc* query,
                 const TileScratch<Acc>& scratch, const Partial<Acc>& partial, bool skip_zeros) {
  const int64_t width = padded(p.D), value_width = padded(p.D_v);
  clear(partial, tile.rows, value_width);

  for (int64_t first_key = keys.begin / kBlockKeys * kBlockKeys; first_key < keys.end;
       first_key += kBlockKeys) {
    const KeyRange loaded = intersect(keys, {first_key, first_key + kBlockKeys});
    const KeyRange block{loaded.begin - first_key, loaded.end - first_key};
    const int64_t count = block.end - block.begin;
    SlotPlace places[kBlockKeys];
    locate_slots(p, tile.batch, loaded, places);
    const Acc* key_rows[kBlockKeys];
    const Acc* value_rows[kBlockKeys];
    std::fill_n(key_rows, kBlockKeys, scratch.zeros);
    gather_rows(p.key, tile.kv_head, places, count, p.D, scratch.key, key_rows + block.begin);
    gather_rows(p.value, tile.kv_head, places, count, p.D_v, scratch.value,
                value_rows + block.begin);

    for_micro_rows(tile.rows, [&]<int kRows>(int64_t r) {
      score_rows<kRows>(query + r * width, width, key_rows, scratch.scores + r * kBlockKeys);
    });
    for (int64_t r = 0; r < tile.rows; ++r) {
      Acc* scores = scratch.scores + r * kBlockKeys;
      const Row row = row_of(p, tile, r);
      const KeyRange seen = intersect(visible_keys(p, tile.batch, row.token), loaded);
      finish_scores(p, tile.batch, row, first_key, {seen.begin - first_key, seen.end - first_key},
                    scores);
      online_softmax(scores, partial.max + r, partial.sum + r, partial.out + r * value_width,
                     value_width);
    }
    for_micro_rows(tile.rows, [&]<int kRows>(int64_t r) {
      weigh_rows<kRows>(scratch.scores + r * kBlockKeys, block, value_rows, skip_zeros,
                        partial.out + r * value_width, value_width);
    });
  }
}

// A value may be NaN or infinite where a row does not see it, and 0 * NaN is NaN. That is rare, so
// the fast loop multiplies zero weights too and is repeated without them where the result is not
// finite.
template <class Acc>
void attend(const AttentionParams& p, const RowTile& tile, KeyRange keys, const Acc* query,
            const TileScratch<Acc>& scratch, const Partial<Acc>& partial) {
  attend_once(p, tile, keys, query, scratch, partial, /*skip_zeros=*/false);
  if (!all_finite(partial.out, tile.rows * padded(p.D_v))) {
    attend_once(p, tile, keys, query, scratch, partial, /*skip_zeros=*/true);
  }
  clear_upper_lanes();
}

}  // namespace

namespace MQA_ISA {
extern const TileOps<float> float_tile_ops{load_queries<float>, attend<float>};
extern const TileOps<double> double_tile_ops{load_queries<double>, attend<double>};
}  // namespace MQA_ISA

}  // namespace mqa::kernels::cpu

// What happens to the scores of a group of rows against a chunk of keys: options, visibility and
// softmax, for the two ways in which they lie in memory.
#pragma once

#include <cmath>

#include "../formats.h"
#include "simd.h"
#include "tile.h"

namespace mqa::kernels::cpu {
namespace {

constexpr int64_t kGroupRows = 16;

template <class Acc>
constexpr Acc kMinusInfinity = -std::numeric_limits<Acc>::infinity();

template <class Acc>
constexpr Acc kLog2E = static_cast<Acc>(1.442695040888963407);

// A query row's place in the call.
struct Row {
  int64_t head, token;
};

// Walks over folded rows without a division for each.
class RowWalk {
 public:
  RowWalk(const AttentionParams& p, const RowTile& tile, int64_t row)
      : group_(p.H_q / p.H_kv),
        first_head_(tile.kv_head * group_),
        head_((tile.first_row + row) % group_),
        token_((tile.first_row + row) / group_) {}

  Row operator*() const { return {first_head_ + head_, token_}; }
  void operator++() {
    if (++head_ == group_) head_ = 0, ++token_;
  }

 private:
  int64_t group_, first_head_, head_, token_;
};

// Scores of [kChunkKeys][kGroupRows]: a vector holds one key's scores with consecutive rows.
struct RowsInLanes {
  static constexpr int64_t kRowStride = 1, kKeyStride = kGroupRows;

  template <class Acc>
  static Vector<Acc> of_rows(const Acc* row_values) {
    return load(row_values);
  }
  template <class Acc>
  static Vector<Acc> of_keys(const Acc* key_values) {
    return broadcast(*key_values);
  }
  template <class Acc>
  static Vector<Acc> keys_from(int64_t key) {
    return broadcast(static_cast<Acc>(key));
  }
};

// Scores of [row][kChunkKeys], for few rows: a vector holds one row's scores with consecutive keys.
struct KeysInLanes {
  static constexpr int64_t kRowStride = kChunkKeys, kKeyStride = 1;

  template <class Acc>
  static Vector<Acc> of_rows(const Acc* row_values) {
    return broadcast(*row_values);
  }
  template <class Acc>
  static Vector<Acc> of_keys(const Acc* key_values) {
    return load(key_values);
  }
  template <class Acc>
  static Vector<Acc> keys_from(int64_t key) {
    Vector<Acc> keys;
    for (int i = 0; i < kLanes<Acc>; ++i) keys[i] = static_cast<Acc>(key + i);
    return keys;
  }
};

// Calls body(row, key, score pointer) for vectors that cover rows x keys; `keys` counts from the
// start of the chunk, in whole vectors.
template <class Layout, class Acc, class Body>
inline void for_each_vector(int64_t rows, KeyRange keys, Acc* scores, const Body& body) {
  constexpr bool kRows = Layout::kRowStride == 1;
  for (int64_t j = keys.begin; j < keys.end; j += kRows ? 1 : kLanes<Acc>) {
    for (int64_t r = 0; r < rows; r += kRows ? kLanes<Acc> : 1) {
      body(r, j, scores + r * Layout::kRowStride + j * Layout::kKeyStride);
    }
  }
}

// Adds attn_mask to one row's scores; a hidden key's score becomes -inf, whatever it was.
template <class Layout, class Acc>
void apply_mask(const Mask& mask, int64_t offset, KeyRange keys, Acc* scores) {
  if (mask.dtype == DType::kBool) {
    const auto* attends = static_cast<const bool*>(mask.data) + offset;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      if (!attends[j * mask.key_stride]) scores[j * Layout::kKeyStride] = kMinusInfinity<Acc>;
    }
    return;
  }
  with_format(mask.dtype, [&](auto format) {
    const auto* bias = static_cast<const typename decltype(format)::Storage*>(mask.data) + offset;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const Acc added = static_cast<Acc>(format.widen(bias[j * mask.key_stride]));
      Acc& score = scores[j * Layout::kKeyStride];
      score = added == kMinusInfinity<Acc> ? added : score + added;
    }
  });
}

template <class Layout, class Acc>
void apply_key_scales(int64_t rows, KeyRange span, const Acc* key_scales, Acc* scores) {
  for_each_vector<Layout>(rows, span, scores, [&](int64_t, int64_t j, Acc* s) {
    store(s, load(s) * Layout::of_keys(key_scales + j));
  });
}

// A call whose scores only need a positive scale leaves it to the softmax.
template <class Acc>
inline bool scale_only(const AttentionParams& p) {
  return static_cast<Acc>(p.scale) > 0 && !(p.softcap > 0) && !p.alibi_slopes && !p.mask.data;
}

// What the softmax multiplies scores by, to have them in units of ln 2.
template <class Acc>
inline Acc softmax_scale(const AttentionParams& p) {
  return scale_only<Acc>(p) ? static_cast<Acc>(p.scale * kLog2E<double>) : kLog2E<Acc>;
}

// Scale, softcap, ALiBi and attn_mask for the rows row0 + [0, rows) of the tile and the keys
// chunk + span; the mask is read for chunk + seen only.
template <class Layout, class Acc>
void apply_options(const AttentionParams& p, const RowTile& tile, int64_t row0, int64_t rows,
                   int64_t chunk, KeyRange span, KeyRange seen, Acc* scores) {
  const Acc scale = static_cast<Acc>(p.scale), cap = static_cast<Acc>(p.softcap);
  for_each_vector<Layout>(rows, span, scores, [&](int64_t, int64_t, Acc* s) {
    Vector<Acc> x = load(s) * scale;
    if (cap > 0) x = tanh_of(x / cap) * cap;
    store(s, x);
  });
  const int64_t real_rows = std::min(rows, tile.rows - row0);
  if (p.alibi_slopes) {
    Acc slopes[kGroupRows] = {}, at[kGroupRows] = {};
    RowWalk row(p, tile, row0);
    for (int64_t r = 0; r < real_rows; ++r, ++row) {
      const auto [head, token] = *row;
      slopes[r] = static_cast<const Acc*>(
          p.alibi_slopes)[tile.batch * p.alibi_batch_stride + head * p.alibi_head_stride];
      at[r] = static_cast<Acc>(diagonal(p, tile.batch, token) - chunk);
    }
    for_each_vector<Layout>(rows, span, scores, [&](int64_t r, int64_t j, Acc* s) {
      const Vector<Acc> distance = Layout::of_rows(at + r) - Layout::template keys_from<Acc>(j);
      store(s, load(s) - Layout::of_rows(slopes + r) * (distance < 0 ? -distance : distance));
    });
  }
  if (p.mask.data) {
    RowWalk row(p, tile, row0);
    for (int64_t r = 0; r < real_rows; ++r, ++row) {
      const auto [head, token] = *row;
      const int64_t offset = tile.batch * p.mask.batch_stride + head * p.mask.head_stride +
                             token * p.mask.query_stride + chunk * p.mask.key_stride;
      apply_mask<Layout>(p.mask, offset, seen, scores + r * Layout::kRowStride);
    }
  }
}

// Gives the keys of chunk + span that a row does not see the score -inf.
template <class Layout, class Acc>
void hide_unseen(const AttentionParams& p, const RowTile& tile, int64_t row0, int64_t rows,
                 int64_t chunk, KeyRange span, Acc* scores) {
  const int64_t real_rows = std::min(rows, tile.rows - row0);
  Acc begin[kGroupRows] = {}, end[kGroupRows] = {};
  KeyRange by_all = span;
  RowWalk row(p, tile, row0);
  for (int64_t r = 0; r < real_rows; ++r, ++row) {
    const KeyRange seen = visible_keys(p, tile.batch, (*row).token);
    const KeyRange here = intersect({seen.begin - chunk, seen.end - chunk}, span);
    begin[r] = static_cast<Acc>(here.begin), end[r] = static_cast<Acc>(here.end);
    by_all = intersect(by_all, here);
  }
  const auto hide = [&](KeyRange keys) {
    for_each_vector<Layout>(rows, keys, scores, [&](int64_t r, int64_t j, Acc* s) {
      const Vector<Acc> key = Layout::template keys_from<Acc>(j);
      const auto seen = (key >= Layout::of_rows(begin + r)) & (key < Layout::of_rows(end + r));
      store(s, seen ? load(s) : broadcast(kMinusInfinity<Acc>));
    });
  };
  if (by_all.empty()) return hide(span);
  constexpr int64_t kWhole = kGroupRows;  // keys that every layout's vectors divide
  hide({span.begin, (by_all.begin + kWhole - 1) / kWhole * kWhole});
  hide({by_all.end / kWhole * kWhole, span.end});
}

// What scores and maxima are set against: -inf - -inf would be NaN.
template <class Acc>
inline Vector<Acc> base_of(Vector<Acc> max) {
  return max == kMinusInfinity<Acc> ? Vector<Acc>{} : max;
}

// The order of a row's sum of weights: sixteen chains, over every sixteenth key, whose sums are
// added by halves.
constexpr int kChains = 16;

template <int n, class T>
inline void add_halves(T (&x)[n]) {
  for (int half = n / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  }
}

template <class V>
inline auto sum_lanes(V x) {
  constexpr int half = sizeof(V) / sizeof(x[0]) / 2;
  if constexpr (half == 1) {
    return x[0] + x[1];
  } else {
    constexpr std::make_integer_sequence<int, half> lanes;
    return sum_lanes(some_lanes<0>(x, lanes) + some_lanes<half>(x, lanes));
  }
}

// Keys whose weights are stored together where the rows are in the lanes.
constexpr int kStoredKeys = 4;

// The largest of each row's scores, times `scale`, the weights 2^(scale * score - max) and their
// sum. Calls store_weights(row, key, vectors) with the weights of four consecutive keys where the
// rows are in the lanes, else with one vector of consecutive keys.
template <class Layout, bool kExact, class Acc, class StoreWeights>
inline void softmax(int64_t rows, KeyRange span, Acc scale, const Acc* scores, Acc* max, Acc* sum,
                    const StoreWeights& store_weights) {
  if constexpr (Layout::kRowStride == 1) {
    for (int64_t r = 0; r < rows; r += kLanes<Acc>) {
      const Acc* row = scores + r;
      Vector<Acc> maxima[kStoredKeys];
      for (Vector<Acc>& m : maxima) m = broadcast(kMinusInfinity<Acc>);
      for (int64_t j = span.begin; j < span.end; j += kStoredKeys) {
        for (int k = 0; k < kStoredKeys; ++k) {
          maxima[k] = maximum(load(row + (j + k) * kGroupRows), maxima[k]);
        }
      }
      const Vector<Acc> largest =
          maximum(maximum(maxima[0], maxima[1]), maximum(maxima[2], maxima[3])) * scale;
      store(max + r, largest);
      const Vector<Acc> minus_base = -base_of<Acc>(largest);
      Vector<Acc> sums[kChains];
      for (Vector<Acc>& s : sums) s = Vector<Acc>{};
      for (int64_t j = span.begin; j < span.end; j += kChains) {
        for (int first = 0; first < kChains; first += kStoredKeys) {
          Vector<Acc> weights[kStoredKeys];
          for (int k = 0; k < kStoredKeys; ++k) {
            const Acc* scores_of_key = row + (j + first + k) * kGroupRows;
            weights[k] = exp2_nonpositive<kExact>(
                multiply_add(load(scores_of_key), broadcast(scale), minus_base));
            sums[first + k] += weights[k];
          }
          store_weights(r, j + first, weights);
        }
      }
      add_halves(sums);
      store(sum + r, sums[0]);
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      const Acc* row = scores + r * kChunkKeys;
      Vector<Acc> largest = broadcast(kMinusInfinity<Acc>);
      for (int64_t j = span.begin; j < span.end; j += kLanes<Acc>) {
        largest = maximum(load(row + j), largest);
      }
      max[r] = max_lanes(largest) * scale;
      const Vector<Acc> minus_base = -base_of<Acc>(broadcast(max[r]));
      Vector<Acc> sums[kChains / kLanes<Acc>];
      for (Vector<Acc>& s : sums) s = Vector<Acc>{};
      for (int64_t j = span.begin; j < span.end; j += kChains) {
        for (int v = 0; v < kChains / kLanes<Acc>; ++v) {
          const int64_t key = j + v * kLanes<Acc>;
          const Vector<Acc> weights =
              exp2_nonpositive<kExact>(multiply_add(load(row + key), broadcast(scale), minus_base));
          sums[v] += weights;
          store_weights(r, key, &weights);
        }
      }
      add_halves(sums);
      sum[r] = sum_lanes(sums[0]);
    }
  }
}

}  // namespace
}  // namespace mqa::kernels::cpu

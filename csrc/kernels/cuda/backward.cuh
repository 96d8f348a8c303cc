// What a tile of rows and a tile of keys give to the gradients; kernels/cpu/gradients.h has the
// formulas.
//
// Two kernels of one shape. In one a block has rows and streams keys past them, for grad_query; in
// the other it has keys and streams rows, for grad_key and grad_value. So both compute the scores:
// seven products instead of five, but every sum belongs to one thread, in one order, without
// atomics. With the block's own tile on the left the accumulators of scores are the left operand of
// the products that follow, as in attention itself.
#pragma once

#include "attention_args.h"
#include "backward_args.h"
#include "products.cuh"
#include "scores.cuh"

namespace mqa::kernels::cuda {

// Shared memory: a block's own two matrices, then two stages of the two that are streamed, then
// what is known of the rows.
template <int kD_, int kRowWarps, int kColumnWarps_, int kStreamed, class Query_>
struct BackwardTile {
  using Query = Query_;
  using Stored = Query_;
  static constexpr int kD = kD_, kRowGroups = 1, kColumnWarps = kColumnWarps_;
  static constexpr int kOwn = 16 * kRowWarps, kKeys = kStreamed, kKeyTiles = kKeys / 8;
  static constexpr int kThreads = 32 * kRowWarps * kColumnWarps;
  static constexpr int kColumns = kD / kColumnWarps;  // of a gradient, a warp's
  static constexpr bool kIsFloat = std::is_same_v<Query, float>;
  static constexpr int kRowBytes = kD * int{sizeof(Query)};
  static constexpr int kQueryRowBytes = kRowBytes, kKeyRowBytes = kRowBytes,
                       kValueRowBytes = kRowBytes;

  static constexpr int kOwnBytes = kOwn * kRowBytes, kStreamedBytes = kKeys * kRowBytes;
  static constexpr int kStages = 2 * kOwnBytes;                   // address
  static constexpr int kRows = kStages + 2 * 2 * kStreamedBytes;  // address
  static constexpr int kMostRows = kOwn > 2 * kKeys ? kOwn : 2 * kKeys;
  static constexpr int kSmemBytes = kRows + kMostRows * 16;
  static_assert(kSmemBytes <= 99 * 1024);

  using Scores = float[kRowGroups][kKeyTiles][4];
  using Out = float[kRowGroups][kColumns / 8][4];
};

// As CacheLoader wants to know it: a tile of kCount keys, and behind it their values.
template <class Tile, int kCount>
struct CacheSide {
  using Stored = typename Tile::Stored;
  static constexpr int kThreads = Tile::kThreads, kKeys = kCount;
  static constexpr int kKeyRowBytes = Tile::kRowBytes, kValueRowBytes = Tile::kRowBytes;
  static constexpr int kKeyBytes = kCount * kKeyRowBytes, kValueBytes = kCount * kValueRowBytes;
  static constexpr int kScaleBytes = 0;
};

// Of a query row: the keys that it sees, what its scores in base 2 are set against, and z.
struct alignas(16) RowFacts {
  int begin, end;
  float base, sum;
};

template <class Tile>
DEVICE void load_rows(const BackwardParams& p, const void* data, bool aligned, int64_t batch_stride,
                      int64_t head_stride, int64_t token_stride, int width, int batch, int kv_head,
                      int first_row, int count, int end_row, int address) {
  using Query = typename Tile::Query;
  constexpr int kUnit = 16 / int{sizeof(Query)}, kUnits = Tile::kD / kUnit;
  const auto* rows = static_cast<const Query*>(data) + batch * batch_stride;
  for (int i = thread_index(); i < count * kUnits; i += Tile::kThreads) {
    const int row = i / kUnits, unit = i % kUnits, column = unit * kUnit;
    unsigned char* const to = dynamic_smem() + address + chunk_at<Tile::kRowBytes>(row, unit);
    const auto [head, token] = place_of_row(p, kv_head, first_row + row);
    const Query* from = rows + head * head_stride + token * token_stride + column;
    const bool valid = first_row + row < end_row;
    if (aligned) {
      cp_async_16(smem_address(to), from, valid && column < width);
    } else {
      for (int k = 0; k < kUnit; ++k) copy_element(to, k, from, valid && column + k < width);
    }
  }
}

// Queries, their grad_outs behind them, and their facts.
template <class Tile>
DEVICE void fetch_queries(const BackwardArgs& a, int batch, int kv_head, int seq_len, int first_row,
                          int count, int end_row, int address, int facts) {
  const BackwardParams& p = a.params;
  load_rows<Tile>(p, p.query, a.query_aligned, p.query_batch_stride, p.query_head_stride,
                  p.query_token_stride, static_cast<int>(p.D), batch, kv_head, first_row, count,
                  end_row, address);
  load_rows<Tile>(p, p.grad_out, a.grad_out_aligned, p.grad_out_batch_stride,
                  p.grad_out_head_stride, p.grad_out_token_stride, static_cast<int>(p.D_v), batch,
                  kv_head, first_row, count, end_row, address + count * Tile::kRowBytes);
  for (int i = thread_index(); i < count; i += Tile::kThreads) {
    RowFacts row{0, 0, 0, 0};  // one that only fills the tile sees nothing
    if (first_row + i < end_row) {
      const auto [head, token] = place_of_row(p, kv_head, first_row + i);
      const KeyRange seen = visible_of(p, seq_len, token);
      const int64_t at = (batch * p.H_q + head) * p.T + token;
      const float lse = load<float>(static_cast<const float*>(p.lse) + at);
      // An infinite score that is seen: as with softmax, NaN.
      const float base = lse == -INFINITY ? 0 : (lse - lse) + lse * kLog2E;
      row = {static_cast<int>(seen.begin), static_cast<int>(seen.end), base,
             load<float>(static_cast<const float*>(p.row_sums) + at)};
    }
    smem_store(dynamic_smem() + facts + i * int{sizeof(RowFacts)}, row);
  }
}

// Softcap, ALiBi and attn_mask, of a score in base 2 and to such, and softcap's derivative.
struct Options {
  const AttentionParams& p;
  int batch, kv_head, seq_len;

  DEVICE float operator()(float score, int row, int key, float& slope) const {
    const auto [head, token] = place_of_row(p, kv_head, row);
    if (p.softcap > 0) {
      const float cap = static_cast<float>(p.softcap) * kLog2E, t = tanhf(score / cap);
      score = cap * t;
      slope = 1 - t * t;
    }
    if (p.alibi_slopes) {
      const float of_head = load<float>(static_cast<const float*>(p.alibi_slopes) +
                                        batch * p.alibi_batch_stride + head * p.alibi_head_stride);
      const auto distance = static_cast<float>(diagonal_at(p, seq_len, token) - key);
      score -= kLog2E * of_head * fabsf(distance);
    }
    if (p.mask.data) {
      const float added =
          mask_value(p.mask, batch * p.mask.batch_stride + head * p.mask.head_stride +
                                 token * p.mask.query_stride + key * p.mask.key_stride);
      score = added == -INFINITY ? added : score + added * kLog2E;
    }
    return score;
  }
};

// Scores to weights p, and grads of weights to those of dot products. kOfKeys: the block's own tile
// is of keys. first_own, first_streamed: numbers of the first row and key, or key and row.
template <class Tile, bool kOfKeys>
DEVICE void to_gradients(const BackwardArgs& a, const Options& options, int facts, int end_row,
                         int warp_row, int first_own, int first_streamed,
                         typename Tile::Scores& scores, typename Tile::Scores& grads) {
  const BackwardParams& p = a.params;
  const bool has_options = p.softcap > 0 || p.alibi_slopes || p.mask.data;
  const float scale = static_cast<float>(p.scale), scale_2 = scale * kLog2E;
  const auto facts_of = [&](int row) {
    return smem_load<RowFacts>(dynamic_smem() + facts + row * int{sizeof(RowFacts)});
  };
  const int own = warp_row + (lane_index() >> 2);
  RowFacts rows[2];
  if constexpr (!kOfKeys) rows[0] = facts_of(own), rows[1] = facts_of(own + 8);
#pragma unroll
  for (int n = 0; n < Tile::kKeyTiles; ++n) {
    const int streamed = 8 * n + 2 * (lane_index() & 3);
    if constexpr (kOfKeys) rows[0] = facts_of(streamed), rows[1] = facts_of(streamed + 1);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float &score = scores[0][n][2 * j + i], &grad = grads[0][n][2 * j + i];
        const int of_own = first_own + own + 8 * j, of_streamed = first_streamed + streamed + i;
        const int row = kOfKeys ? of_streamed : of_own, key = kOfKeys ? of_own : of_streamed;
        const RowFacts& known = rows[kOfKeys ? i : j];
        float x = score * scale_2, slope = 1;
        bool sees = key >= known.begin && key < known.end;
        if (has_options && sees) {
          x = options(x, row, key, slope);
          sees = x != -INFINITY;
        }
        score = sees ? ex2(x - known.base) : 0;
        grad = sees ? score * (grad - known.sum) : 0;  // values that are not seen may be NaN
        if (!kOfKeys && p.grad_mask.data && sees && row < end_row) {
          const Mask& to = p.grad_mask;
          const auto [head, token] = place_of_row(p, options.kv_head, row);
          store(static_cast<float*>(const_cast<void*>(to.data)) + options.batch * to.batch_stride +
                    head * to.head_stride + token * to.query_stride + key * to.key_stride,
                grad);
        }
        grad *= scale * slope;
      }
  }
}

template <class Tile>
DEVICE void clear(typename Tile::Out& out) {
#pragma unroll
  for (int n = 0; n < Tile::kColumns / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) out[0][n][i] = 0;
}

// Calls body(j, column, value) for a lane's gradients: of row lane / 4 + 8 j of the warp's.
template <class Tile, class Body>
DEVICE void for_each_gradient(int first_column, const typename Tile::Out& out, const Body& body) {
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int n = 0; n < Tile::kColumns / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        body(j, first_column + value_column<typename Tile::Stored>(n, i), out[0][n][2 * j + i]);
      }
}

// Calls work(tile, stage address, facts address) for the streamed tiles from `tile` to `end`, each
// while the next one is on its way. fetch(tile, stage, facts) starts a copy, next(tile) is the tile
// after one.
template <class Tile, class Fetch, class Next, class Work>
DEVICE void stream(int tile, int end, const Fetch& fetch, const Next& next, const Work& work) {
  const auto start = [&](int t, int stage) {
    if (t < end) {
      fetch(t, Tile::kStages + stage * 2 * Tile::kStreamedBytes,
            Tile::kRows + stage * Tile::kKeys * int{sizeof(RowFacts)});
    }
    cp_async_commit();
  };
  start(tile, 0);
  for (int stage = 0; tile < end; stage ^= 1) {
    const int following = next(tile);
    cp_async_wait<0>();
    sync_block();  // this tile is there, and all threads have left the one before
    start(following, stage ^ 1);
    work(tile, Tile::kStages + stage * 2 * Tile::kStreamedBytes,
         Tile::kRows + stage * Tile::kKeys * int{sizeof(RowFacts)});
    tile = following;
  }
  cp_async_wait<0>();
}

template <class Tile>
KERNEL(Tile::kThreads)
differentiate_queries(const GRID_CONSTANT BackwardArgs a) {
  using Query = typename Tile::Query;
  const BackwardParams& p = a.params;
  int index = block_index();
  const int row_tile = a.row_tiles - 1 - index % a.row_tiles;  // causal: the longest start first
  index /= a.row_tiles;
  const int kv_head = index % static_cast<int>(p.H_kv), batch = index / static_cast<int>(p.H_kv);

  const int seq_len = static_cast<int>(seq_len_of(p, batch));
  const int first_row = row_tile * Tile::kOwn;
  const int end_row = static_cast<int>(p.H_q / p.H_kv * p.T);
  const int last_row = std::min(first_row + Tile::kOwn, end_row) - 1;
  const KeyRange by_first = visible_of(p, seq_len, place_of_row(p, 0, first_row).token);
  const KeyRange by_last = visible_of(p, seq_len, place_of_row(p, 0, last_row).token);
  const int begin = static_cast<int>(by_first.begin);
  const int end = static_cast<int>(std::max(by_last.end, by_first.begin));

  fetch_queries<Tile>(a, batch, kv_head, seq_len, first_row, Tile::kOwn, end_row, 0, Tile::kRows);
  CacheLoader<CacheSide<Tile, Tile::kKeys>> loader(p, a.key_aligned, a.value_aligned, batch,
                                                   kv_head, begin, end);
  const int warp_row = warp_index() / Tile::kColumnWarps * 16;
  const int first_column = warp_index() % Tile::kColumnWarps * Tile::kColumns;
  const Options options{p, batch, kv_head, seq_len};
  typename Tile::Out out;
  clear<Tile>(out);
  stream<Tile>(
      begin / Tile::kKeys, begin < end ? (end + Tile::kKeys - 1) / Tile::kKeys : 0,
      [&](int tile, int stage, int) {
        loader.look_up(tile);
        loader.fetch(tile, stage);
      },
      [](int tile) { return tile + 1; },
      [&](int tile, int stage, int) {
        typename Tile::Scores scores, grads;
        multiply_keys<Tile>(0, warp_row, stage, scores);
        multiply_keys<Tile>(Tile::kOwnBytes, warp_row, stage + Tile::kStreamedBytes, grads);
        to_gradients<Tile, false>(a, options, Tile::kRows, end_row, warp_row, first_row,
                                  tile * Tile::kKeys, scores, grads);
        multiply_values<true, Tile>(grads, stage, first_column, out);
      });
  for_each_gradient<Tile>(first_column, out, [&](int j, int column, float value) {
    const int row = first_row + warp_row + (lane_index() >> 2) + 8 * j;
    if (row >= end_row || column >= p.D) return;
    const auto [head, token] = place_of_row(p, kv_head, row);
    store(static_cast<Query*>(p.grad_query) + ((batch * p.H_q + head) * p.T + token) * p.D + column,
          narrow<Query>(value));
  });
}

template <class Tile>
KERNEL(Tile::kThreads)
differentiate_keys(const GRID_CONSTANT BackwardArgs a) {
  const BackwardParams& p = a.params;
  int index = block_index();
  const int key_tile = index % a.key_tiles;
  index /= a.key_tiles;
  const int segment = index % a.segments;
  index /= a.segments;
  const int kv_head = index % static_cast<int>(p.H_kv), batch = index / static_cast<int>(p.H_kv);

  const int seq_len = static_cast<int>(seq_len_of(p, batch));
  const int first_key = key_tile * Tile::kOwn;
  const int end_key = std::min(first_key + Tile::kOwn, seq_len);
  const int end_row = static_cast<int>(p.H_q / p.H_kv * p.T);
  const int tiles = (end_row + Tile::kKeys - 1) / Tile::kKeys;
  // The next tile of the segment, from `tile` on, with rows that see some of the keys.
  const auto find = [&](int tile) {
    for (; tile < tiles; tile += a.segments) {
      const int first = tile * Tile::kKeys, last = std::min(first + Tile::kKeys, end_row) - 1;
      const KeyRange by_first = visible_of(p, seq_len, place_of_row(p, 0, first).token);
      const KeyRange by_last = visible_of(p, seq_len, place_of_row(p, 0, last).token);
      if (by_first.begin < end_key && by_last.end > first_key) break;
    }
    return tile;
  };

  CacheLoader<CacheSide<Tile, Tile::kOwn>> loader(p, a.key_aligned, a.value_aligned, batch, kv_head,
                                                  first_key, end_key);
  loader.look_up(key_tile);
  loader.fetch(key_tile, 0);
  const int warp_row = warp_index() / Tile::kColumnWarps * 16;
  const int first_column = warp_index() % Tile::kColumnWarps * Tile::kColumns;
  const Options options{p, batch, kv_head, seq_len};
  typename Tile::Out key_grad, value_grad;
  clear<Tile>(key_grad);
  clear<Tile>(value_grad);
  stream<Tile>(
      find(segment), tiles,
      [&](int tile, int stage, int facts) {
        fetch_queries<Tile>(a, batch, kv_head, seq_len, tile * Tile::kKeys, Tile::kKeys, end_row,
                            stage, facts);
      },
      [&](int tile) { return find(tile + a.segments); },
      [&](int tile, int stage, int facts) {
        const int grad_outs = stage + Tile::kStreamedBytes;
        typename Tile::Scores scores, grads;
        multiply_keys<Tile>(0, warp_row, stage, scores);
        multiply_keys<Tile>(Tile::kOwnBytes, warp_row, grad_outs, grads);
        to_gradients<Tile, true>(a, options, facts, end_row, warp_row, first_key,
                                 tile * Tile::kKeys, scores, grads);
        multiply_values<true, Tile>(scores, grad_outs, first_column, value_grad);
        multiply_values<true, Tile>(grads, stage, first_column, key_grad);
      });
  const int64_t width = p.D + p.D_v, sums = (int64_t{index} * a.segments + segment) * p.S;
  const auto write = [&](int64_t columns, int64_t first, const typename Tile::Out& out) {
    for_each_gradient<Tile>(first_column, out, [&](int j, int column, float value) {
      const int key = first_key + warp_row + (lane_index() >> 2) + 8 * j;
      if (key < p.S && column < columns)
        store(a.sums + (sums + key) * width + first + column, value);
    });
  };
  write(p.D, 0, key_grad);
  write(p.D_v, p.D, value_grad);
}

inline constexpr int kRowKernelWarps = 4;

// row_sums: a warp has a row.
template <class Query>
KERNEL(kRowKernelWarps * 32)
sum_rows(const GRID_CONSTANT BackwardArgs a) {
  const BackwardParams& p = a.params;
  const int64_t row = int64_t{block_index()} * kRowKernelWarps + warp_index();
  if (row >= p.B * p.H_q * p.T) return;
  const int64_t token = row % p.T, head = row / p.T % p.H_q, batch = row / p.T / p.H_q;
  const auto* out = static_cast<const Query*>(p.out) + row * p.D_v;
  const auto* grad_out = static_cast<const Query*>(p.grad_out) + batch * p.grad_out_batch_stride +
                         head * p.grad_out_head_stride + token * p.grad_out_token_stride;
  const auto number = [](const Query* from) {
    if constexpr (std::is_same_v<Query, float>) {
      return load<float>(from);
    } else {
      return to_float(load<Query>(from));
    }
  };
  float sum = 0;
  for (int64_t d = lane_index(); d < p.D_v; d += 32) {
    sum = fmaf(number(out + d), number(grad_out + d), sum);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += shfl_xor(sum, lanes);
  if (lane_index() != 0) return;
  if (p.grad_lse) sum -= load<float>(static_cast<const float*>(p.grad_lse) + row);
  store(static_cast<float*>(p.row_sums) + row, sum);
}

// Adds up the segments of the cache's gradients, in order: a warp has a slot of a head.
template <class Out>
KERNEL(kRowKernelWarps * 32)
add_segments(const GRID_CONSTANT BackwardArgs a) {
  const BackwardParams& p = a.params;
  const int64_t row = int64_t{block_index()} * kRowKernelWarps + warp_index();
  if (row >= p.B * p.H_kv * p.S) return;
  const int64_t width = p.D + p.D_v, head = row / p.S, slot = row % p.S;
  for (int64_t d = lane_index(); d < width; d += 32) {
    float sum = 0;
    for (int segment = 0; segment < a.segments; ++segment) {
      sum += load<float>(a.sums + ((head * a.segments + segment) * p.S + slot) * width + d);
    }
    void* const grad = d < p.D ? p.grad_key : p.grad_value;
    const int64_t at = d < p.D ? row * p.D + d : row * p.D_v + d - p.D;
    if (grad) store(static_cast<Out*>(grad) + at, narrow<Out>(sum));
  }
}

}  // namespace mqa::kernels::cuda

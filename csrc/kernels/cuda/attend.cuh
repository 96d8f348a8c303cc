// Attention of a tile of query rows over a part of the keys.
//
// A block has one sequence's rows of one KV head, up to Tile::kRows of G * T, and streams keys and
// values through a ring of stages in shared memory. A chunk's keys (split.h) are summed up with an
// online softmax; a block that has several chunks folds each into totals of its own. What it writes
// is the result, or a partial result for combine.cuh.
//
// Where the time goes: cache bytes, up to about 64 rows of 16-bit caches; beyond that the products.
#pragma once

#include "attention_args.h"
#include "products.cuh"
#include "scores.cuh"
#include "split.h"

namespace mqa::kernels::cuda {

template <class Tile>
DEVICE void clear(typename Tile::Out& out, LaneRows<Tile>& rows) {
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m) {
    rows.softmax[m][0] = rows.softmax[m][1] = {};
    rows.unit[m][0] = rows.unit[m][1] = 0;
#pragma unroll
    for (int n = 0; n < Tile::kColumns / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] = 0;
  }
}

// Sums up what the four lanes with a row's keys have, and multiplies the weights' unit in.
template <class Tile>
DEVICE void end_chunk(typename Tile::Out& out, LaneRows<Tile>& rows) {
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float& sum = rows.softmax[m][j].sum;
      sum += shfl_xor(sum, 1);
      sum += shfl_xor(sum, 2);
      if constexpr (Tile::kHasUnits) scale_row<Tile>(m, j, rows.unit[m][j], out);
    }
}

// Folds a chunk into the thread's totals in shared memory, which no other thread reads, and gives
// them.
template <class Tile>
DEVICE void fold_chunk(bool is_first, typename Tile::Out& out, LaneRows<Tile>& rows) {
  float* at = reinterpret_cast<float*>(dynamic_smem() + Tile::kTotals) + thread_index();
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Softmax& part = rows.softmax[m][j];
      Softmax total;
      if (!is_first) total = {smem_load<float>(at), smem_load<float>(at + Tile::kThreads)};
      const Fold fold(total, part);
      part = total;
      smem_store(at, total.max);
      smem_store(at + Tile::kThreads, total.sum);
      at += 2 * Tile::kThreads;
#pragma unroll
      for (int n = 0; n < Tile::kColumns / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = out[m][n][2 * j + i];
          x = fold(is_first ? 0 : smem_load<float>(at), x);
          smem_store(at, x);
          at += Tile::kThreads;
        }
    }
}

// The rows' results, without those that only fill the tile.
template <class Tile>
DEVICE void write(const AttentionArgs& a, int64_t item, int part, int first_row, int first_column,
                  int end_row, const typename Tile::Out& out, const LaneRows<Tile>& rows) {
  using Query = typename Tile::Query;
  const AttentionParams& p = a.params;
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = rows.row(m, j);
      if (row >= end_row) continue;
      const Softmax softmax = rows.softmax[m][j];
      const bool writes_softmax = first_column == 0 && (lane_index() & 3) == 0;
      if (a.parts > 1) {
        const int64_t partial = (item * a.parts + part) * Tile::kRows + row - first_row;
        if (writes_softmax) store(a.partial_softmax + partial, softmax);
        float* const to = a.partial_out + partial * a.partial_width;
#pragma unroll
        for (int n = 0; n < Tile::kColumns / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int column = first_column + value_column<typename Tile::Stored>(n, i);
            if (column < p.D_v) store(to + column, out[m][n][2 * j + i]);
          }
      } else {
        const auto [head, token] = rows.place(m, j);
        const Finish finish(softmax, sink_of(p, head));
        const int64_t to = ((rows.batch * p.H_q) + head) * p.T + token;
        if (writes_softmax && p.lse) store(static_cast<float*>(p.lse) + to, finish.lse);
#pragma unroll
        for (int n = 0; n < Tile::kColumns / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int column = first_column + value_column<typename Tile::Stored>(n, i);
            if (column < p.D_v) {
              store(static_cast<Query*>(p.out) + to * p.D_v + column,
                    narrow<Query>(out[m][n][2 * j + i] * finish.factor));
            }
          }
      }
    }
}

template <class Tile>
KERNEL(Tile::kThreads)
attend(const GRID_CONSTANT AttentionArgs a) {
  using Query = typename Tile::Query;
  using Stored = typename Tile::Stored;
  const AttentionParams& p = a.params;

  // The last rows of a causal call see most keys: they start first.
  int index = block_index();
  const int row_tile = a.row_tiles - 1 - index % a.row_tiles;
  index /= a.row_tiles;
  const int part = index % a.parts;
  index /= a.parts;
  const int kv_head = index % static_cast<int>(p.H_kv), batch = index / static_cast<int>(p.H_kv);
  const int64_t item = int64_t{index} * a.row_tiles + row_tile;

  const int seq_len = static_cast<int>(seq_len_of(p, batch));
  const int first_row = row_tile * Tile::kRows;
  const int end_row = static_cast<int>(p.H_q / p.H_kv * p.T);
  const int last_row = std::min(first_row + Tile::kRows, end_row) - 1;
  const int64_t first_token = place_of_row(p, 0, first_row).token;
  const int64_t last_token = place_of_row(p, 0, last_row).token;
  // Keys that some row sees, and those that all rows see: both bounds grow with the token.
  const KeyRange by_first = visible_of(p, seq_len, first_token);
  const KeyRange by_last = visible_of(p, seq_len, last_token);
  const int64_t chunk = chunk_keys(seq_len, split_tiles(p.H_kv, end_row));
  const int64_t part_keys = a.parts > 1 ? chunk * a.part_chunks : seq_len;
  const int begin = static_cast<int>(std::max(by_first.begin, part * part_keys));
  const int end = static_cast<int>(std::min(by_last.end, (part + 1) * part_keys));
  if (begin >= end && a.parts > 1) return;

  const int stages = Tile::kQueryBytes;  // address
  const int tiles_begin = begin / Tile::kKeys;
  const int tiles_end = begin < end ? (end + Tile::kKeys - 1) / Tile::kKeys : tiles_begin;
  CacheLoader<Tile> loader(p, a.key_aligned, a.value_aligned, batch, kv_head, begin, end);
  const auto fetch = [&](int tile) {
    if (tile < tiles_end) {
      loader.fetch(tile, stages + tile % Tile::kStages * Tile::kStageBytes);
      loader.look_up(tile + 1);
    }
    cp_async_commit();
  };

  if (tiles_begin < tiles_end) {
    load_queries<Tile>(p, a.query_aligned, batch, kv_head, first_row, end_row);
  }
  loader.look_up(tiles_begin);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) fetch(tiles_begin + i);

  constexpr bool kOneWarp = Tile::kThreads == 32;
  const int warp_row = warp_index() / Tile::kValueWarps * 16 * Tile::kRowGroups;
  const int first_column = warp_index() % Tile::kValueWarps * Tile::kColumns;
  LaneRows<Tile> rows(p, batch, kv_head, first_row + warp_row, seq_len);
  typename Tile::Out out;
  clear<Tile>(out, rows);
  const bool has_options = p.softcap > 0 || p.alibi_slopes || p.mask.data;
  const float scale = static_cast<float>(p.scale) * kLog2E * kCodeFactor<Query, Stored>;
  bool is_first_chunk = true;

  for (int tile = tiles_begin; tile < tiles_end; ++tile) {
    cp_async_wait<Tile::kStages - 2>();
    if constexpr (kOneWarp) {
      sync_warp();
    } else {
      sync_block();
    }
    // This tile is there for all threads, and all have left the one before: its place is free.
    fetch(tile + Tile::kStages - 1);

    const int stage = stages + tile % Tile::kStages * Tile::kStageBytes;
    const int values = stage + Tile::kKeyBytes, scales = values + Tile::kValueBytes;
    const int key = tile * Tile::kKeys, lane_key = key + 2 * (lane_index() & 3);
    typename Tile::Scores scores;
    multiply_keys<Tile>(/*queries=*/0, warp_row, stage, scores);
    scale_scores<Tile>(scale, scales, scores);
    if (has_options) apply_options<Tile>(rows, end_row, lane_key, scores);
    const bool hides = key < by_last.begin || key + Tile::kKeys > by_first.end;
    if (hides) hide<Tile>(rows, lane_key, scores);
    to_weights<Tile>(rows, scores, out);
    const bool is_careful = hides || p.mask.data;
    if constexpr (kIsQuantised<Stored>) {
      scale_weights<Tile>(rows, scales + Tile::kScaleBytes, scores, out);
    }
    if (is_careful) {
      multiply_values<true, Tile>(scores, values, first_column, out);
    } else {
      multiply_values<false, Tile>(scores, values, first_column, out);
    }

    const int next_key = key + Tile::kKeys;
    if (a.part_chunks > 1 && (next_key % chunk == 0 || tile + 1 == tiles_end)) {
      end_chunk<Tile>(out, rows);
      fold_chunk<Tile>(is_first_chunk, out, rows);
      is_first_chunk = false;
      if (tile + 1 < tiles_end) clear<Tile>(out, rows);
    }
  }
  if (a.part_chunks == 1) end_chunk<Tile>(out, rows);
  write<Tile>(a, item, part, first_row, first_column, end_row, out, rows);
}

}  // namespace mqa::kernels::cuda

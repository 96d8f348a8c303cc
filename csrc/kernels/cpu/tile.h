// The primitives that the attention driver is built from: one tile of query rows against one chunk
// of keys. They are compiled once per ISA; isa.h picks the best that the machine has.
#pragma once

#include <limits>

#include "../visibility.h"

namespace mqa::kernels::cpu {

constexpr int64_t kTileRows = 64;
constexpr int64_t kBlockKeys = 64;  // online softmax proceeds by such blocks, at absolute positions

// Rows are padded with zeros to a multiple of every ISA's vector.
constexpr int64_t padded(int64_t width) { return (width + 15) / 16 * 16; }

// Query heads that share a KV head are folded into rows: row = token * G + head in group.
struct RowTile {
  int64_t batch, kv_head, first_row, rows;
};

// Unnormalised result of some rows over some keys:
// out = sum_j exp(score_j - max) value_j, sum = sum_j exp(score_j - max).
template <class Acc>
struct Partial {
  Acc* out;  // [rows, padded(D_v)]
  Acc* max;  // [rows]
  Acc* sum;  // [rows]
};

namespace {  // internal linkage: every ISA that includes this compiles its own copy

// A query row's place in the call.
struct Row {
  int64_t head, token;
};

inline Row row_of(const AttentionParams& p, const RowTile& tile, int64_t row) {
  const int64_t group = p.H_q / p.H_kv, folded = tile.first_row + row;
  return {tile.kv_head * group + folded % group, folded / group};
}

template <class Acc>
constexpr Acc kMinusInfinity = -std::numeric_limits<Acc>::infinity();

// Makes it the result of rows that have seen no key; `width` is padded(D_v).
template <class Acc>
inline void clear(const Partial<Acc>& partial, int64_t rows, int64_t width) {
  std::fill_n(partial.out, rows * width, Acc{0});
  std::fill_n(partial.max, rows, kMinusInfinity<Acc>);
  std::fill_n(partial.sum, rows, Acc{0});
}

}  // namespace

// Memory that a tile works in.
template <class Acc>
struct TileScratch {
  Acc* key;     // [kBlockKeys, padded(D)]
  Acc* value;   // [kBlockKeys, padded(D_v)]
  Acc* scores;  // [kTileRows, kBlockKeys]
  Acc* zeros;   // [padded(max(D, D_v))], holds zeros
};

template <class Acc>
struct TileOps {
  // Copies the tile's query rows to [rows, padded(D)].
  void (*load_queries)(const AttentionParams&, const RowTile&, Acc* query);

  // Attends over `keys`, all of which some row of the tile sees, and overwrites `partial`.
  void (*attend)(const AttentionParams&, const RowTile&, KeyRange keys, const Acc* query,
                 const TileScratch<Acc>&, const Partial<Acc>& partial);
};

template <class Acc>
const TileOps<Acc>& tile_ops();

}  // namespace mqa::kernels::cpu

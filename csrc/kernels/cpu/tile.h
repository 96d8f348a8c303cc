// The primitives that the attention driver is built from: one tile of query rows against one chunk
// of keys. They are compiled once per ISA; isa.h says which one is in use.
#pragma once

#include "../params.h"
#include "../visibility.h"

namespace mqa::kernels::cpu {

constexpr int64_t kTileRows = 128;
constexpr int64_t kChunkKeys = 256;  // a softmax without rescaling, at absolute positions

// Rows are padded with zeros to a multiple of every ISA's vector.
constexpr int64_t padded(int64_t width) { return (width + 15) / 16 * 16; }

// Of the chunk that `keys` lie in.
constexpr int64_t chunk_start(KeyRange keys) { return keys.begin / kChunkKeys * kChunkKeys; }

// Query heads that share a KV head are folded into rows: row = token * G + head in group.
struct RowTile {
  int64_t batch, kv_head, first_row, rows;
};

// A tile of rows and the keys, of one chunk, that it is to attend over.
struct Work {
  RowTile tile;
  KeyRange keys;
};

// Unnormalised result of some rows over some keys, the scores s in units of ln 2:
// out = sum_j 2^(s_j - max) value_j, sum = sum_j 2^(s_j - max).
template <class Acc>
struct Partial {
  Acc* out;  // [rows in whole groups of 16, padded(D_v)]
  Acc* max;  // [rows]
  Acc* sum;  // [rows]
};

template <class Acc>
struct TileOps {
  // Bytes, multiples of 64: of a tile's packed queries, and of the memory that attend works in.
  int64_t (*query_size)(const AttentionParams&);
  int64_t (*scratch_size)(const AttentionParams&);

  void (*pack_queries)(const AttentionParams&, const RowTile&, void* query);

  // Fetches into the cache what `attend` wants to find there when it begins: the work's lead.
  void (*fetch_lead)(const AttentionParams&, const Work&);

  // Overwrites `partial`; each key is seen by some row. Fetches the lead of `next`.
  void (*attend)(const AttentionParams&, const Work&, const Work& next, const void* query,
                 void* scratch, const Partial<Acc>& partial);

  // Makes it the result of rows that have seen no key.
  void (*clear)(const AttentionParams&, int64_t rows, const Partial<Acc>& partial);

  // total += part.
  void (*fold)(const AttentionParams&, int64_t rows, const Partial<Acc>& part,
               const Partial<Acc>& total);

  // Adds the sink, divides by the sum and stores out and lse.
  void (*finish)(const AttentionParams&, const RowTile&, const Partial<Acc>& total);
};

// The ones for these dtypes on the ISA in use.
template <class Acc>
const TileOps<Acc>& tile_ops(const AttentionParams& params);

}  // namespace mqa::kernels::cpu

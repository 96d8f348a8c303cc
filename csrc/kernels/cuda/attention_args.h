// What the attention kernels get, beside the call itself.
#pragma once

#include "../params.h"
#include "device.cuh"
#include "partial.cuh"

namespace mqa::kernels::cuda {

struct AttentionArgs {
  AttentionParams params;
  bool query_aligned, key_aligned, value_aligned;  // rows to 16 bytes
  int row_tiles;                                   // of a KV head's G * T rows
  int tile_rows;
  int parts;        // that a row's keys are cut into; 1: no partial results
  int part_chunks;  // chunks in a part: 1, or a group

  // Partial results: [B, H_kv, row_tiles, parts, tile_rows], values in rows of partial_width
  float* partial_out;
  Softmax* partial_softmax;
  int64_t partial_width;
};

DEVICE int64_t seq_len_of(const AttentionParams& p, int64_t batch) {
  if (!p.seq_lens) return p.S;
  const int64_t seq_len = load<int64_t>(p.seq_lens + batch);
  return seq_len < 0 ? 0 : seq_len > p.S ? p.S : seq_len;
}

// In base e; -inf where there is none.
DEVICE float sink_of(const AttentionParams& p, int64_t head) {
  return p.sinks ? load<float>(static_cast<const float*>(p.sinks) + head) : -INFINITY;
}

}  // namespace mqa::kernels::cuda

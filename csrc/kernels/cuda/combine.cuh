// Folds the partial results of each row, in the order of the keys: chunks into groups, groups into
// the result.
//
// A block has one row and up to 128 columns of its values. Warps take groups in turn; the first
// warp then folds the groups. Time: the partial results, which the kernel before left in the L2
// cache.
#pragma once

#include "../visibility.h"
#include "attention_args.h"
#include "loads.cuh"
#include "split.h"

namespace mqa::kernels::cuda {

inline constexpr int kCombineWarps = 4, kCombineColumns = 128;
inline constexpr int kMaxGroups = kMaxChunks / kGroupChunks;
inline constexpr int kCombineSmem = kMaxGroups * (kCombineColumns * 4 + int{sizeof(Softmax)});

struct Accumulator {
  Softmax softmax;
  float4 out{0, 0, 0, 0};

  DEVICE void add(const Softmax& part, const float4& x) {
    const Fold fold(softmax, part);
    out = {fold(out.x, x.x), fold(out.y, x.y), fold(out.z, x.z), fold(out.w, x.w)};
  }
};

template <class Query>
KERNEL(kCombineWarps * 32)
combine(const GRID_CONSTANT AttentionArgs a) {
  wait_for_previous_kernel();
  const AttentionParams& p = a.params;
  const int slabs = static_cast<int>((p.D_v + kCombineColumns - 1) / kCombineColumns);
  int64_t index = block_index();
  const int slab = static_cast<int>(index % slabs);
  index /= slabs;
  const int group_rows = static_cast<int>(p.H_q / p.H_kv * p.T);
  const int row = static_cast<int>(index % group_rows);
  index /= group_rows;
  const int kv_head = static_cast<int>(index % p.H_kv);
  const int64_t batch = index / p.H_kv;
  const auto [head, token] = place_of_row(p, kv_head, row);

  const int64_t seq_len = seq_len_of(p, batch);
  const KeyRange seen = visible_of(p, seq_len, token);
  const int64_t chunk = chunk_keys(seq_len, split_tiles(p.H_kv, group_rows));
  const int64_t first_chunk = seen.empty() ? 0 : seen.begin / chunk;
  const int64_t end_chunk = seen.empty() ? 0 : (seen.end + chunk - 1) / chunk;
  const int first_group = static_cast<int>(first_chunk / kGroupChunks);
  const int end_group = static_cast<int>((end_chunk + kGroupChunks - 1) / kGroupChunks);

  const int64_t item = index * a.row_tiles + row / a.tile_rows;
  const int column = slab * kCombineColumns + 4 * lane_index();
  const bool has_columns = column < a.partial_width;
  auto* const group_out = reinterpret_cast<float4*>(dynamic_smem());
  auto* const group_softmax =
      reinterpret_cast<Softmax*>(dynamic_smem() + kMaxGroups * kCombineColumns * 4);

  for (int group = first_group + warp_index(); group < end_group; group += kCombineWarps) {
    Accumulator total;
    const int parts = kGroupChunks / a.part_chunks;  // of a group
#pragma unroll
    for (int i = 0; i < kGroupChunks; ++i) {
      const int64_t part = int64_t{group} * parts + i;
      const bool is_there =
          i < parts && (part + 1) * a.part_chunks > first_chunk && part * a.part_chunks < end_chunk;
      if (!is_there) continue;
      const int64_t at = (item * a.parts + part) * a.tile_rows + row % a.tile_rows;
      float4 x{0, 0, 0, 0};
      if (has_columns) x = load<float4>(a.partial_out + at * a.partial_width + column);
      total.add(load<Softmax>(a.partial_softmax + at), x);
    }
    const int at = group - first_group;
    smem_store(group_out + at * 32 + lane_index(), total.out);
    if (lane_index() == 0) smem_store(group_softmax + at, total.softmax);
  }
  sync_block();
  if (warp_index() != 0) return;

  Accumulator total;
  for (int i = 0; i < end_group - first_group; ++i) {
    total.add(smem_load<Softmax>(group_softmax + i),
              smem_load<float4>(group_out + i * 32 + lane_index()));
  }
  const Finish finish(total.softmax, sink_of(p, head));
  const int64_t to = (batch * p.H_q + head) * p.T + token;
  if (p.lse && slab == 0 && lane_index() == 0) store(static_cast<float*>(p.lse) + to, finish.lse);
  const float out[4] = {total.out.x, total.out.y, total.out.z, total.out.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i < p.D_v) {
      store(static_cast<Query*>(p.out) + to * p.D_v + column + i,
            narrow<Query>(out[i] * finish.factor));
    }
  }
}

}  // namespace mqa::kernels::cuda
